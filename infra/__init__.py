"""Where sluice runs, and the small local web that it is tried on."""
