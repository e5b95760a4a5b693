"""The collapse zoo: scenarios in which codebooks collapse, or do not, and what rescues them."""
