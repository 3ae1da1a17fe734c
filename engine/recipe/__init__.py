"""Recipes: merge YAML files and `key=value` overrides into one checked, frozen `Recipe`."""

from engine.recipe.campaigns import OF_GRID as OF_GRID
from engine.recipe.campaigns import SELECTION as SELECTION
from engine.recipe.campaigns import each_model as each_model
from engine.recipe.campaigns import methods_of as methods_of
from engine.recipe.campaigns import model_of as model_of
from engine.recipe.campaigns import names as names
from engine.recipe.catalogue import ROOT as ROOT
from engine.recipe.catalogue import TIMM_MODELS as TIMM_MODELS
from engine.recipe.grid_keys import GridKeys as GridKeys
from engine.recipe.grid_keys import grid_keys as grid_keys
from engine.recipe.grid_keys import of_sweep as of_sweep
from engine.recipe.overrides import Override as Override
from engine.recipe.overrides import parsed as parsed
from engine.recipe.resolve import dump as dump
from engine.recipe.resolve import load as load
from engine.recipe.resolve import of_sections as of_sections
from engine.recipe.resolve import varied as varied
from engine.recipe.typed import text as text
from engine.recipe.typed import value_of as value_of
