"""Recipes, one YAML file a run: `schema` has the keys, `parsing` reads them, `plan` is the dry run."""
