"""How the ground is started: the laboratory on one machine, containers, clusters. Nothing imports it."""
