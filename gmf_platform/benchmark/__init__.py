"""How fast and how large things are here: what the verb `benchmark` measures with."""
