"""Networks: architectures, transforms, heads and pretrained weights."""

from engine.models.build import create as create
from engine.models.build import features as features
from engine.models.build import head as head
from engine.models.build import head_names as head_names
from engine.models.build import load_state as load_state
from engine.models.build import logits as logits
from engine.models.build import size_options as size_options
from engine.models.images import Normalize as Normalize
from engine.models.images import choices as choices
from engine.models.images import crop_from as crop_from
from engine.models.images import data_config as data_config
from engine.models.images import described_model as described_model
from engine.models.images import description as description
from engine.models.images import transform as transform
