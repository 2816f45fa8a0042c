"""The report: one self-contained page, the final table, and figures, all drawn from the outputs of the other stages."""
