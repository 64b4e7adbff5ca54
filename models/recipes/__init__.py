"""One YAML per system: `models.recipe` reads them, `sluice recipes` lists them."""
