"""Networks: architectures, transforms, heads and pretrained weights."""

from engine.models.build import Normalize as Normalize
from engine.models.build import create as create
from engine.models.build import create_for_states as create_for_states
from engine.models.build import features as features
from engine.models.build import head as head
from engine.models.build import head_names as head_names
from engine.models.build import load_state as load_state
from engine.models.build import logits as logits
from engine.models.build import size_options as size_options
from engine.models.build import take_head as take_head
