"""Recipes: YAML files and `key=value` words become one checked, frozen `Recipe`."""

from engine.recipe.catalogue import OF_GRID as OF_GRID
from engine.recipe.catalogue import ROOT as ROOT
from engine.recipe.catalogue import SELECTION as SELECTION
from engine.recipe.catalogue import describe as describe
from engine.recipe.catalogue import each_model as each_model
from engine.recipe.catalogue import methods_of as methods_of
from engine.recipe.catalogue import model_of as model_of
from engine.recipe.catalogue import names as names
from engine.recipe.catalogue import published as published
from engine.recipe.grid_keys import GridKeys as GridKeys
from engine.recipe.grid_keys import grid_keys as grid_keys
from engine.recipe.resolve import dump as dump
from engine.recipe.resolve import load as load
from engine.recipe.resolve import of_sections as of_sections
from engine.recipe.resolve import outline as outline
from engine.recipe.sweep import sweep_command as sweep_command
from engine.recipe.sweep import words_of_sweep as words_of_sweep
from engine.recipe.vary import text as text
from engine.recipe.vary import value_of as value_of
from engine.recipe.vary import varied as varied
