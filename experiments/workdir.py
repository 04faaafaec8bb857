"""What the programs know of a work directory: its configuration and its newest parameters."""

from pathlib import Path

from flax import nnx

from block_recurrent import LanguageModel
from block_recurrent.config import ExperimentConfig
from block_recurrent.training.checkpoints import Checkpoints
from configure import ConfigError, load, to_gin

CONFIG = "config.gin"
# All else of `training.`, such as the length of the run, may change when it is continued.
SEED = "training.seed"


def claim(workdir: Path, config: ExperimentConfig) -> None:
    """Writes the resolved configuration, or checks that it is the one the run began with.

    Raises:
      ConfigError: the directory belongs to another configuration; every difference is listed.
    """
    path = workdir / CONFIG
    if path.exists():
        differences = _differences(load([path]), config)
        if differences:
            listed = "\n  ".join(differences)
            raise ConfigError(
                f"{workdir} holds a run with another configuration; choose another --workdir or "
                f"undo the change:\n  {listed}"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(to_gin(config), encoding="utf-8")


def _differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    pairs = zip(to_gin(old).splitlines(), to_gin(new).splitlines(), strict=True)
    return [
        f"{before}, now {after.partition(' = ')[2]}"
        for before, after in pairs
        if before != after and (before.startswith(SEED) or not before.startswith("training."))
    ]


def config_file(workdir: str | Path) -> Path:
    """The configuration of a run.

    Raises:
      ConfigError: `workdir` holds no run.
    """
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG} in it")
    return path


def restore_model(workdir: str | Path, config: ExperimentConfig) -> LanguageModel:
    """The model with the newest checkpoint's parameters.

    Raises:
      CheckpointError: there is no checkpoint yet, or it does not fit the configuration.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    try:
        model = LanguageModel(config.model, rngs=nnx.Rngs(0))
        return checkpoints.restore_parameters(model)
    finally:
        checkpoints.close()
