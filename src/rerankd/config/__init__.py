"""Settings: one frozen value, merged from command-line flags, environment, `rerankd.toml` and defaults.

Each setting's name, default and description is written once, in one of these files or in a backend's
options.py. Its environment variable is `RERANKD_` followed by the name in capitals.
"""

from rerankd.config.model_settings import EffectiveModelSettings, ModelSettings, ServingSettings
from rerankd.config.ray_settings import RaySettings
from rerankd.config.request_defaults import RequestDefaults
from rerankd.config.scoring_settings import ScoringSettings
from rerankd.config.settings import Settings, changed, engines_differ, needs
from rerankd.config.sources import FILE_NAME, find, from_machine, load, override, service_links
from rerankd.config.upstream_settings import UpstreamSettings

__all__ = [
    "FILE_NAME",
    "EffectiveModelSettings",
    "ModelSettings",
    "RaySettings",
    "RequestDefaults",
    "ScoringSettings",
    "ServingSettings",
    "Settings",
    "UpstreamSettings",
    "changed",
    "engines_differ",
    "find",
    "from_machine",
    "load",
    "needs",
    "override",
    "service_links",
]
