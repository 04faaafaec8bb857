"""What rows remember: facts that are set early in a document and asked for later.

    block-recurrent recall
    block-recurrent recall --rows Rec:lstm:single --facts=4 --keys=4 --gin.model.num_states=64

Trains small models on documents of facts, random tokens and questions, and prints how many answers
are right by how many tokens lie between. Every call adds its results to the work directory, and
the table has all that are there; what has been trained is not trained again. docs/recall.md says
what came out.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from block_recurrent import gin_files
from block_recurrent.command_line.failures import reported, training_knobs_named
from block_recurrent.command_line.options import positive
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import ExperimentConfig
from block_recurrent.data import ByteTokenizer
from block_recurrent.lab.recall.facts import KEYS, VALUES, Task, make_round, training_batches
from block_recurrent.lab.tables.layout import (
    Page,
    TextTable,
    finish,
    label_logarithmic,
    publish,
    styles,
)
from block_recurrent.lab.tables.naming import distinct_names, is_recurrent, row_name
from block_recurrent.lab.tables.rows import row_called
from block_recurrent.lab.tables.seed_groups import without_seeds
from block_recurrent.model.protocol import CarriedState, Model
from block_recurrent.runs import workdir
from block_recurrent.runs.reading import parameters_without_embedding
from block_recurrent.system.devices import check_device
from block_recurrent.system.digests import digest
from block_recurrent.system.files import write_whole
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import StopRequest, stop_on_signal
from block_recurrent.training import make_train_step
from block_recurrent.training.build import make_train_state
from block_recurrent.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = ("XL:64", "Slide:4L", "Rec:fixed:skip", "Rec:lstm:single")
GAPS = (16, 32, 64, 128, 256, 1024, 4096, 16_384, 100_000)
DOCUMENTS = 64  # read for each gap, a quarter of them from 4,096 on
LOGGED = 20  # steps between lines of progress
DESCRIPTION = (
    "Percentage of answers that are right, by the gap between facts and questions, in documents "
    "with as many facts as the row says. A model that knows nothing is right in "
    f"{100 / len(VALUES):.0f} % of all cases, and one that knows which values were set, but not of "
    "which key, in 1 / facts. Of several seeds: the mean."
)


@jax.jit(donate_argnums=1)
def read_segment(model: Model, carried: CarriedState, tokens: Any) -> tuple[Any, CarriedState]:
    """Reads tokens [B, N]: the likeliest next token at each position, and the next state."""
    features, carried = model.features(tokens, carried)
    return jnp.argmax(model.logits(features), axis=-1), carried


def accuracy(config: ExperimentConfig, model: Model, task: Task, gap: int) -> float:
    """The share of right answers in new documents of one round, the same ones for every model.

    Args:
      config: of the model, whose batch and segments are used.
      model: the language model.
      task: how many facts of how many keys.
      gap: tokens between facts and questions.
    """
    rows, length = config.data.batch_size, config.data.segment_length
    rng, right = np.random.default_rng([0, gap]), []
    for _ in range(-(-DOCUMENTS // (rows if gap < 4096 else 4 * rows))):
        rounds = [make_round(rng, task.facts, task.keys, gap) for _ in range(rows)]
        tokens = np.stack([each.tokens for each in rounds])
        first = np.full((rows, 1), ByteTokenizer.beginning_of_document)
        padding = np.zeros((rows, -tokens.shape[1] % length))
        inputs = np.concatenate([first, tokens[:, :-1], padding], axis=1).astype(np.int32)
        carried, told = model.initial_state(rows), []
        for segment in np.split(inputs, inputs.shape[1] // length, axis=1):
            likeliest, carried = read_segment(model, carried, segment)
            told.append(likeliest)
        asked = rounds[0].asked  # in all of them at the same places
        answers = np.concatenate(told, axis=1)[:, : tokens.shape[1]]
        right.append(answers[:, asked] == tokens[:, asked])
    return float(np.mean(right))


def learn(
    config: ExperimentConfig, task: Task, line: ProgressLine, stop: StopRequest
) -> tuple[Model, float]:
    """Trains a model from its beginning; nothing is saved.

    Args:
      config: of the run.
      task: what rounds are like.
      line: shows the progress.
      stop: ends the training when it is requested.

    Returns:
      The model, and its loss in nats an answer in the last tenth of the steps.

    Raises:
      Stopped: a stop was requested.
    """
    data, steps, seed = config.data, config.training.num_steps, config.training.seed
    step = make_train_step(make_optimizer(config), jax.random.fold_in(jax.random.key(seed), 1))
    state, losses = make_train_state(config), []
    batches = training_batches(task, data.batch_size, data.segment_length, steps, data.seed)
    for number, batch in enumerate(batches, 1):
        stop.check()
        state, metrics = step(state, batch)
        losses.append((metrics.nats, metrics.targets))
        if number % LOGGED == 0:
            loss = _mean(losses[-LOGGED:])
            line.show(f"step {number:,} of {steps:,}: {loss:.3f} nats an answer")
    return state.model, _mean(losses[-max(1, steps // 10) :])


def _mean(losses: Sequence[tuple[Any, Any]]) -> float:
    nats, targets = np.sum(np.array(losses, np.float64), axis=0)
    return nats / targets


def recall(
    config: ExperimentConfig, task: Task, folder: Path, line: ProgressLine, stop: StopRequest
) -> None:
    """Trains and asks one model, unless its results are in the folder already."""
    row, gin = row_name(config), gin_files.to_gin(config)
    identity = digest(f"{gin}{task}".encode())
    path = folder / f"{row.replace(':', '-')}-{identity[:12]}.json"
    if path.exists():
        return
    line.show(f"{row}: compiling the training step ...", always=True)
    model, loss = learn(config, task, line, stop)
    right = {}
    for gap in GAPS:
        stop.check()
        line.show(f"{row}: {loss:.3f} nats an answer; asking after {gap:,} tokens")
        right[str(gap)] = accuracy(config, model, task, gap)
    line.end(f"{row}: {loss:.3f} nats an answer, {right[str(GAPS[0])]:.0%} right after {GAPS[0]}")
    facts = {
        "row": row,
        "seed": config.training.seed,
        "parameters": parameters_without_embedding(config.model),
        "states": config.model.num_states if is_recurrent(config) else 0,
        "steps": config.training.num_steps,
        **task._asdict(),
        "nats": loss,
        "right": right,
        "config": gin,
    }
    write_whole(path, json.dumps(facts, indent=2) + "\n")


class Group(NamedTuple):
    """Results that differ only in their seeds.

    Attributes:
      name: of the row, with what sets it apart from others of the same name.
      task: what its models were trained on.
      results: of each seed.
    """

    name: str
    task: Task
    results: list[Mapping[str, Any]]


def group(results: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The results of all models, those that differ only in their seeds together, in order."""
    found: dict[tuple[Task, ExperimentConfig], list[Mapping[str, Any]]] = {}
    sizes = ("steps", "row", "parameters", "states")
    for result in sorted(results, key=lambda each: [each[name] for name in Task._fields + sizes]):
        task = Task(*(result[name] for name in Task._fields))
        config = without_seeds(gin_files.load_text(result["config"], "a result"))
        found.setdefault((task, config), []).append(result)
    names = distinct_names([config for _, config in found])
    return [
        Group(name, task, own) for name, ((task, _), own) in zip(names, found.items(), strict=True)
    ]


def percentages(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The percentage of right answers of each seed after each gap, [seeds, gaps]."""
    return 100 * np.array([[each["right"][str(gap)] for gap in GAPS] for each in results])


def make_page(results: Sequence[Mapping[str, Any]]) -> Page:
    """The page of all results."""
    groups, lines = group(results), []
    for name, task, own in groups:
        model = own[0]
        sizes = (f"{model['parameters']:,}", str(model["states"] or ""))
        sizes += (f"{task.facts} of {task.keys}",)
        loss = np.mean([result["nats"] for result in own])
        gaps = f"{task.shortest} to {task.longest:,}"
        learned = (gaps, f"{model['steps']:,}", str(len(own)), f"{loss:.3f}")
        right = percentages(own).mean(0)
        lines.append([name, *sizes, *learned, *(f"{share:.0f}" for share in right)])
    columns = ("row", "parameters", "states", "facts, of keys", "gaps in training", "steps")
    columns += ("seeds", "nats an answer", *(f"{gap:,}" for gap in GAPS))
    table = TextTable(columns, lines, ("row",))
    data = {"results": list(results)}
    return Page("recall", {"": table}, DESCRIPTION, data, {"recall": partial(draw, groups)})


def draw(groups: Sequence[Group], picture: "Figure") -> None:
    """Draws the share of right answers against the gap: a panel for each number of facts.

    A thin line is a seed, a thick one the mean.
    """
    tasks = sorted({(task.facts, task.keys) for _, task, _ in groups})
    picture.set_size_inches(4 + 9 * len(tasks), 4.5)
    panels = picture.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for panel, (facts, keys) in zip(panels, tasks, strict=True):
        drawn = [each for each in groups if (each.task.facts, each.task.keys) == (facts, keys)]
        for style, (name, task, own) in zip(styles([x.name for x in drawn]), drawn, strict=True):
            label = f"{name}, trained to {task.longest:,}"
            right = percentages(own)
            panel.plot(GAPS, right.T, color=style["color"], linewidth=0.6, alpha=0.4)
            panel.plot(GAPS, right.mean(0), label=label, markersize=4, **style)
        for share, what in ((1 / len(VALUES), "nothing known"), (1 / facts, "values, not whose")):
            panel.axhline(100 * share, color="black", linewidth=0.8, linestyle=":")
            panel.annotate(what, (GAPS[-1], 100 * share), ha="right", va="bottom", fontsize="small")
        panel.set(xscale="log", ylim=(0, 103), title=f"{facts} facts of {keys} keys")
        panel.set_xlabel("tokens between facts and questions")
        label_logarithmic(panel.xaxis)
    panels[0].set_ylabel("answers that are right, %")
    finish(panels, loc="upper left", bbox_to_anchor=(1.0, 1.0))


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="NAME", help=" ".join(ROWS))
    for name, usual, text in (
        ("facts", 2, "facts of a document"),
        ("keys", 4, f"keys that they are drawn from, at most {len(KEYS)}"),
        ("shortest", 16, "shortest gap in training, in tokens"),
        ("longest", 1000, "longest gap in training, in tokens"),
    ):
        text = f"{text} ({usual})"
        parser.add_argument(f"--{name}", type=positive, default=usual, metavar="N", help=text)
    parser.add_argument("--workdir", type=Path, default=Path("runs/recall"), help="results")
    arguments, base = parse(parser, argv, lambda _: ["recall.gin"])
    task = Task(*(getattr(arguments, name) for name in Task._fields))
    if not task.facts <= task.keys <= len(KEYS):
        parser.error(
            f"--facts={task.facts} --keys={task.keys}: there are at most {len(KEYS)} keys, and no "
            "more facts than keys"
        )
    if task.shortest > task.longest:
        parser.error(f"--shortest={task.shortest} is more than --longest={task.longest}")
    configs = [row_called(base, name).config for name in arguments.rows]
    line = ProgressLine()
    with stop_on_signal(nothing_to_save=True) as stop, training_knobs_named(base):
        check_device()
        with workdir.locked(arguments.workdir):
            for config in configs:
                recall(config, task, arguments.workdir, line, stop)
            found = sorted(arguments.workdir.glob("*-*.json"))
            publish(make_page([json.loads(path.read_text()) for path in found]), arguments.workdir)
    return 0
