"""From the config's sections to frozen settings, checked: the only place in the package that knows ml_collections.

Settings live with the code that reads them; this module fills them and says what does not fit.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict

from ..audit.verdict import AuditSettings
from ..core.errors import check
from ..data.source import DataSettings
from ..detectors.augmix import AugMixSettings
from ..detectors.settings import ClassifierSettings
from ..diffusion.flow import OdeSettings
from ..diffusion.sampling import SamplerSettings
from ..diffusion.sde import Process, SdeSettings, make_process
from ..diffusion.training import TrainingSettings
from ..engine.chains import EngineSettings
from ..models.resnet import ResNetSettings
from ..models.unet import UNetSettings
from ..studies.bound import BoundSettings
from ..studies.count import CountSettings
from ..studies.likelihood import NllSettings
from ..studies.search import SearchSettings


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What `report.html` shows.

    Attributes:
      show_members: show training images, targets and reproductions; False: no pictures. Numbers of single images,
        which confirm them to whoever has the model, stay in it: what may leave the hospital is in public/.
      public: write public/, aggregates alone; False removes it.
      tensorboard: write every number of metrics.jsonl as TensorBoard events too (extra `tensorboard`); their file
        names carry the machine's name.
    """

    show_members: bool = True
    public: bool = True
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """One audit, whole. Sections that only change the speed or the looks are named in `FREE_SECTIONS`."""

    name: str
    seed: int
    data: DataSettings
    sde: SdeSettings
    model: UNetSettings
    score: TrainingSettings
    sampler: SamplerSettings
    engine: EngineSettings
    resnet: ResNetSettings
    classifiers: ClassifierSettings
    augmix: AugMixSettings
    count: CountSettings
    search: SearchSettings
    ode: OdeSettings
    likelihood: NllSettings
    bound: BoundSettings
    audit: AuditSettings
    report: ReportSettings

    @property
    def process(self) -> Process:
        """The diffusion that `sde` names."""
        return make_process(self.sde)


FREE_SECTIONS = ("engine", "report")  # not audit: levels and tolerance are stated beforehand
# Where files lie on this machine: not part of what a run is, and not written down with it. Nor is what names patients'
# groups, which can hold names: data.json has the digest of who belongs together.
FREE_FIELDS = ("data.directory", "data.path", "data.download", "data.group", "score.path", "classifiers.path")


def _fits(value: Any, default: Any, hint: Any) -> bool:
    """Whether a config value has the type of the setting's default; whole numbers pass for floats.

    Args:
      hint: the setting's annotation, which alone says what an empty tuple may hold.
    """
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        # Not isfinite, which overflows on huge whole numbers.
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(v) is get_args(hint)[0] for v in value)
    return isinstance(value, type(default))


def _fill(section: str, settings: type, values: Any) -> Any:
    """One settings dataclass from one section."""
    defaults, hints = {field.name: field.default for field in dataclasses.fields(settings)}, get_type_hints(settings)
    check(
        isinstance(values, dict),
        section,
        got=values,
        expected=f"a section with {', '.join(defaults)}",
        fix="see configs/default.py",
    )
    for name in values:
        check(
            name in defaults,
            f"{section}.{name}",
            got="an unknown field",
            expected=f"one of {', '.join(defaults)}",
            fix="correct its name",
        )
    for name, value in values.items():
        check(
            _fits(value, defaults[name], hints[name]),
            f"{section}.{name}",
            got=repr(value),
            expected=f"a finite value of the type of {defaults[name]!r}",
            fix="give a value of that type",
        )
    return settings(
        **{
            name: tuple(value)
            if isinstance(value, list)
            else type(defaults[name])(value)
            if isinstance(defaults[name], float)
            else value
            for name, value in values.items()
        }
    )


AUTO = "auto"
# Fields that may be `AUTO`: what they stand for depends on the device, and is written down.
BY_DEVICE = ("model.dtype", "model.kernels", "resnet.dtype")


def by_device(config: ConfigDict) -> tuple[str, ...]:
    """The fields that this config leaves to the device."""
    given = config.to_dict()
    sections = {name: section for name, section in given.items() if isinstance(section, dict)}
    return tuple(name for name in BY_DEVICE if sections.get(name.split(".")[0], {}).get(name.split(".")[1]) == AUTO)


def make_config(config: ConfigDict, *, auto: Mapping[str, str] | None = None) -> Config:
    """Frozen settings from a config; fields that it leaves out keep their defaults.

    Args:
      auto: what fields of `by_device` stand for; those that it leaves out keep their defaults, float32 and XLA.

    Raises:
      RequestError: unknown section or field, wrong type, value out of range.
    """
    fields = get_type_hints(Config)
    values = config.to_dict()
    for place in by_device(config):
        section, field = place.split(".")
        del values[section][field]
        values[section] |= {field: auto[place]} if auto and place in auto else {}
    for name in values:
        check(
            name in fields,
            f"config.{name}",
            got="an unknown section",
            expected=f"one of {', '.join(fields)}",
            fix="correct its name",
        )
    name, seed = values.get("name", "audit"), values.get("seed", 0)
    check(
        isinstance(name, str) and name.isprintable() and 0 < len(name) <= 60 and "/" not in name,
        "name",
        got=repr(name),
        expected="a short word without slashes",
        fix="name the config after its data",
    )
    check(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**31,
        "seed",
        got=repr(seed),
        expected="an integer in [0, 2^31)",
        fix="use 0",
    )
    sections = {
        key: _fill(key, kind, values.get(key, {})) for key, kind in fields.items() if key not in ("name", "seed")
    }
    made = Config(name=name, seed=seed, **sections)
    _check_together(made)
    return made


def _check_together(config: Config) -> None:
    """Refuses sections that contradict each other."""
    check(
        config.data.stamp or config.classifiers.detector == "nearest",
        "data.stamp",
        got="False, with classifiers that look for a disc",
        expected="True, or detection without them",
        fix="set classifiers.detector to nearest",
    )
    check(
        not config.likelihood.snapshots or config.score.keep_every > 0,
        "likelihood.snapshots",
        got="True, with no checkpoints kept but the last",
        expected="a model that is trained here with score.keep_every above 0",
        fix="set score.keep_every before training, or likelihood.snapshots to False",
    )
    check(
        config.score.path != "" or not config.score.without_scheduler,
        "score.without_scheduler",
        got=True,
        expected="False for a model that is trained here",
        fix="leave it out, or give score.path",
    )
    if config.score.path:
        check(
            not config.data.stamp,
            "data.stamp",
            got="True, with an imported model that was trained without the disc",
            expected="False with score.path",
            fix="set data.stamp to False; discs that were planted before training are part of your images",
        )
        check(
            config.data.num_train == 0,
            "data.num_train",
            got=config.data.num_train,
            expected="0 with score.path: the train split is what the imported model was trained on",
            fix="set it to 0, and give those images as data",
        )


def describe_config(config: Config, *, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Nested dict of JSON types, the resolved config without the fields `skip`, each named "section.field"."""
    return {
        key: {k: list(v) if isinstance(v, tuple) else v for k, v in value.items() if f"{key}.{k}" not in skip}
        if isinstance(value, dict)
        else value
        for key, value in dataclasses.asdict(config).items()
    }
