"""Recipes: merge YAML files and `key=value` overrides into one checked, frozen `Recipe`."""
