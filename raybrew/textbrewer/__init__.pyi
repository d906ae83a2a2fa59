"""TextBrewer's names, and where each is; see `raybrew.lazy`."""

from raybrew.textbrewer.configs import FEATURES as FEATURES
from raybrew.textbrewer.configs import CustomMatch as CustomMatch
from raybrew.textbrewer.configs import DistillationConfig as DistillationConfig
from raybrew.textbrewer.configs import TrainingConfig as TrainingConfig
from raybrew.textbrewer.distillers import BasicDistiller as BasicDistiller
from raybrew.textbrewer.distillers import BasicTrainer as BasicTrainer
from raybrew.textbrewer.distillers import Distillers as Distillers
from raybrew.textbrewer.distillers import EMDDistiller as EMDDistiller
from raybrew.textbrewer.distillers import GeneralDistiller as GeneralDistiller
from raybrew.textbrewer.distillers import MultiTaskDistiller as MultiTaskDistiller
from raybrew.textbrewer.distillers import MultiTeacherDistiller as MultiTeacherDistiller
from raybrew.textbrewer.presets import ADAPTOR_KEYS as ADAPTOR_KEYS
from raybrew.textbrewer.presets import KD_LOSS_MAP as KD_LOSS_MAP
from raybrew.textbrewer.presets import MATCH_LOSS_MAP as MATCH_LOSS_MAP
from raybrew.textbrewer.presets import PROJ_MAP as PROJ_MAP
from raybrew.textbrewer.presets import TEMPERATURE_SCHEDULER as TEMPERATURE_SCHEDULER
from raybrew.textbrewer.presets import WEIGHT_SCHEDULER as WEIGHT_SCHEDULER
from raybrew.textbrewer.presets import register_new as register_new
