"""Numbers as a person reads them."""


def number(value: float) -> str:
    """Write a measured number with three to four significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 0.001 else f"{value:.1e}"


def count(value: float) -> str:
    """Write a count with thousands separated."""
    return f"{value:,.0f}"


def flops(value: float) -> str:
    """Write floating-point operations with an SI prefix."""
    value = float(f"{value:.3g}")
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:g} {prefix}FLOP"
    return f"{value:g} FLOP"


def duration(seconds: float) -> str:
    """Write seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{rounded(seconds / 3600)} h"


def rounded(value: float) -> str:
    """Write a number with three significant digits and without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"
