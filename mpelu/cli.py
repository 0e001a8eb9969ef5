"""The command line: arguments in, text and exit codes out. Torch is imported only by the commands that need it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped by SIGINT or SIGTERM with the state saved, 141 nobody
reads the output any more (``mpelu ... | head -1``).
"""

import dataclasses
import difflib
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

import mpelu
from mpelu.errors import MpeluError, UsageError
from mpelu.train.recipe import Recipe

BOOLEANS = {f"--{field.name}" for field in dataclasses.fields(Recipe) if field.type in (bool, bool | None)}


class Parser(ArgumentParser):
    """A parser whose errors are one line on stderr, with a suggestion where a name was mistyped."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        text = self._value_error(message) or " ".join(message.split())
        prog = self.prog.replace(" [options]", "")
        missing = re.search(r"required: (\w+)\.(\w+)", text)  # it names the option of a command as export.out
        absent = re.search(r'"config": File does not exist: (.+)', text)
        if missing:
            prog = f"mpelu {missing[1]}"
            text = f"'{prog}' needs {self._spelled(*missing.groups())}, which was not given"
        elif absent:
            text = f"--config {absent[1]} does not exist"
        hint = "" if missing or text.startswith("--") else _suggestion(text, self._names())
        sys.stderr.write(f"mpelu: error: {text}{hint} (see '{prog} --help')\n")
        sys.exit(2)

    def _spelled(self, command: str, name: str) -> str:
        """Return an argument of a command as it is written: NAMES, or --out."""
        commands = self._subcommands_action
        actions = commands._name_parser_map[command]._actions if commands else []
        options = [option for action in actions if action.dest == name for option in action.option_strings]
        return options[0] if options else name.upper()

    def _value_error(self, message: str) -> str | None:
        """Say what an option wants and what it got, from the parser's longer words for it."""
        key = re.match(r'Parser key "(?:\w+\.)*(\w+)"', message)
        value = re.search(r"(?:Given value|Got value|value): (\S+)\s*$", message)
        wanted = next((getattr(a, "_typehint", None) for a in self._actions if key and a.dest == key[1]), None)
        if not (key and value and wanted):
            return None
        choices = [
            choice for kind in (wanted, *get_args(wanted)) if get_origin(kind) is Literal for choice in get_args(kind)
        ]
        kinds = " or ".join(kind.__name__ for kind in (get_args(wanted) or (wanted,)) if isinstance(kind, type))
        close = difflib.get_close_matches(value[1], choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return (
            f"--{key[1].replace('_', '-')} must be {', '.join(choices) or kinds.replace(' or NoneType', '')}, "
            f"got {value[1]}{hint}"
        )

    def _names(self) -> list[str]:
        parsers = [self, *(self._subcommands_action._name_parser_map.values() if self._subcommands_action else ())]
        options = [option for parser in parsers for action in parser._actions for option in action.option_strings]
        commands = list(self._subcommands_action._name_parser_map) if self._subcommands_action else []
        return [name.replace("_", "-") if name.startswith("--") else name for name in options] + commands


def _suggestion(message: str, names: Sequence[str]) -> str:
    """Return "; did you mean --lr?" for the first word of a message that is near to a name."""
    for word in re.findall(r"--?[\w.-]+|(?<=[\"'])[\w.-]+(?=[\"'])", message):
        spelled = word.replace("_", "-")
        if spelled in names:
            continue
        dashed = spelled if spelled.startswith("-") else f"--{spelled}"
        close = difflib.get_close_matches(spelled, names, n=1, cutoff=0.6) or difflib.get_close_matches(
            dashed, names, n=1, cutoff=0.7
        )
        if close:
            return f"; did you mean {close[0]}?"
    return ""


def parser(train: Mapping[str, Any] | None = None) -> Parser:
    """Build the parser of all commands; ``train`` holds other defaults for options of that command."""
    top = Parser(prog="mpelu", description="Make very deep networks train: MPELU, its initialization, its networks.")
    top.add_argument("--version", action="version", version=f"mpelu {mpelu.__version__}")
    commands = top.add_subcommands(required=True, dest="command", title="commands", metavar="COMMAND")
    for name, (build, _) in COMMANDS.items():
        command = build()
        if name == "train":
            command.set_defaults(dict(train or {}))
        command.add_argument("-v", "--verbose", action="store_true", help="Show the traceback of an error.")
        commands.add_subcommand(name, command, help=command.description)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would try again to write
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("mpelu: stopped; run the same command to continue\n")
        return 130


def _main(argv: Sequence[str]) -> int:
    _print_anywhere()
    # torch's own switch: huge pages for CPU tensors, which spares a training step a quarter of its time in page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = [_spelled(word) for word in argv]
    words = _with_values(words)
    given = parser().parse_args([word for word in words if not word.startswith("--print_config")], defaults=False)
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # one line, whatever it is given
    options = given[given.command]
    _, command = COMMANDS[given.command]
    try:
        defaults = _defaults(options) if given.command == "train" else None
        options = parser(defaults).parse_args(words)[given.command]
        return command(options)
    except BrokenPipeError:
        raise
    except (MpeluError, OSError) as error:
        if options.get("verbose"):
            traceback.print_exc()
        code = _exit_code(error)
        sys.stderr.write(f"mpelu: {'error: ' if code <= 2 else ''}{_one_line(error)}\n")
        return code


def _print_anywhere() -> None:
    """Show a question mark for what a terminal without UTF-8 cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _exit_code(error: Exception) -> int:
    stopped = getattr(error, "signal_number", 0)
    return 128 + stopped if stopped else 2 if isinstance(error, UsageError) else 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"mpelu: warning: {' '.join(str(message).split())}\n")


def _spelled(word: str) -> str:
    """Accept --batch-size for --batch_size."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _with_values(words: list[str]) -> list[str]:
    """Let a bare --compile mean --compile true."""
    result = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        result.append(word)
        if word in BOOLEANS and following.lower() not in ("true", "false"):
            result.append("true")
    return result


def _print_line(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    from mpelu.train.records import to_json

    _print_line(to_json(value))


def _console() -> Any:
    """Return a rich console; away from a terminal it is wide enough that no cell is cut."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


# mpelu demo


def _demo_parser() -> Parser:
    command = Parser(description="Train four 30-layer nets on the built-in digits and show which of them learn.")
    command.add_argument("--depth", type=int, default=30, help="30, or 60 to 200: then three nets, one tailored to it.")
    command.add_argument("--seeds", type=int, default=1, help="Seeds for each net.")
    command.add_argument("--workers", type=int, default=2, help="Processes; each has one thread.")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
    command.add_argument("--out", type=Path, default=Path("report.html"), help="The page to write.")
    return command


def _demo(options: Namespace) -> int:
    from rich.live import Live

    from mpelu.report import render_page, results_table, summarize
    from mpelu.studies import demo
    from mpelu.studies.pool import Job, run_all
    from mpelu.train.run import prepare

    if options.seeds < 1 or options.workers < 1:
        raise UsageError(f"--seeds and --workers must be at least 1, got {options.seeds} and {options.workers}")
    started = time.perf_counter()
    jobs = []
    for recipe in demo.recipes(options.depth):
        for seed in range(options.seeds):
            prepared = prepare(recipe, seed=seed, runs=options.runs, study="demo")
            jobs.append(Job(prepared.recipe, seed, prepared.folder))
    console = _console()
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            if console.is_terminal:
                live.update(_live_table(jobs), refresh=True)

        refresh()
        records = run_all(jobs, runs=options.runs, study="demo", workers=options.workers, on_change=refresh)
    records = sorted(records, key=lambda record: (record["config"]["activation"], record["recipe"], record["seed"]))
    console.print(results_table(summarize(records)))
    verdicts = demo.verdicts(records, options.depth)
    for verdict in verdicts:
        console.print(f"{verdict.outcome:>12}  {verdict.statement}: {verdict.evidence}", soft_wrap=True)
    page = render_page(
        records,
        title=demo.title(options.depth),
        lead=demo.lead(options.depth),
        how_to_read=demo.how_to_read(options.depth),
        verdicts=verdicts,
    )
    _write_text(options.out, page)
    _print_line(f"{options.out} written; {time.perf_counter() - started:.0f} s")
    return 0 if all(verdict.outcome == "holds" for verdict in verdicts) else 1


def _live_table(jobs: Sequence[Any]) -> Any:
    """Return where each job is, read from the metrics that the workers write."""
    from rich.table import Table

    from mpelu.train.records import RESULT, read_metrics

    table = Table("net", "seed", "epoch", "train loss", "test error %", "images/s", "")
    for job in jobs:
        rows = read_metrics(job.folder)
        last = rows[-1] if rows else {}
        state = "done" if (job.folder / RESULT).exists() else "runs" if job.folder.exists() else "waits"
        table.add_row(
            f"{job.recipe.activation}, {job.recipe.init}",
            str(job.seed),
            f"{len(rows)}/{job.recipe.epochs}",
            f"{float(last['train_loss']):.4f}" if last else "",
            f"{float(last['test_error_percent']):.1f}" if last else "",
            f"{float(last['images_per_second']):.0f}" if last else "",
            state,
        )
    return table


def _write_text(path: Path, text: str) -> None:
    from mpelu.train.checkpoint import write_atomically

    if not path.parent.is_dir():
        raise MpeluError(f"no folder {path.parent} to write {path.name} in; create it or give another one")
    write_atomically(path, text.encode())


# mpelu train


def _train_parser() -> Parser:
    command = Parser(description="Train one network; killed runs continue, finished runs are not repeated.")
    command.add_argument("--config", action="config", help="A YAML file with any of these options.")
    command.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="A recipe that 'mpelu recipes' lists, or module:name or file.py:name of your own; what else is given here "
        "stands in the place of what it says.",
    )
    command.add_argument(
        "--scale",
        type=Literal["paper", "cpu"] | None,
        default=None,
        help="Of --recipe: paper (if not given), or cpu: shortened for two cores, on the built-in digits.",
    )
    command.add_argument(
        "--follow",
        type=Literal["paper", "code"] | None,
        default=None,
        help="Of --recipe: the text of the paper (if not given) or its released code, where they disagree.",
    )
    command.add_class_arguments(Recipe)
    command.add_argument("--seed", type=int, default=0, help="Seed of weights, order, augmentation and dropout.")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    command.add_argument("--threads", type=int | None, default=None, help="CPU threads; not given: torch's choice.")
    command.add_argument(
        "--workers",
        type=int,
        default=0,
        help="Of --stream: processes that decode photographs; 0 decodes where the run trains. It stays the same.",
    )
    command.add_argument(
        "--watch",
        type=int | None,
        default=None,
        help="Record the signal of every so many-th step in signal.jsonl of the run folder; the run stays the same.",
    )
    command.add_argument(
        "--checkpoint_activations",
        action="store_true",
        help="Compute most activations again in the backward pass: less memory, more time, the same bits.",
    )
    command.add_argument("--json", action="store_true", help="Print a JSON line for each epoch and for the result.")
    return command


def _defaults(given: Namespace) -> dict[str, Any] | None:
    """Return the fields of the recipe that is asked for, None if none is."""
    if given.get("recipe") is None:
        alone = [f"--{name}" for name in ("scale", "follow") if given.get(name) is not None]
        if alone:
            raise UsageError(f"{' and '.join(alone)} must come with --recipe; 'mpelu recipes' lists them")
        return None
    return dataclasses.asdict(_asked(given, data=given.get("data")))


def _asked(options: Namespace, data: str | None) -> Recipe:
    """Return the recipe that --recipe, --scale and --follow name, whatever else is given."""
    from mpelu.recipes import row

    found = row(options.recipe)
    if options.get("follow") == "code" and not found.code:
        raise UsageError(f"of {found.name}, no released code is known that differs from the paper; leave out --follow")
    return found.recipe(options.get("scale") or "paper", follow=options.get("follow") or "paper", data=data)


def _scale(options: Namespace) -> str | None:
    """Return the scale of a recipe that is trained as it is, None of any other training."""
    if options.recipe is None or _asked(options, data=options.data) != _recipe(options):
        return None
    return options.scale or "paper"


def _recipe(options: Namespace) -> Recipe:
    return Recipe(**{field.name: options[field.name] for field in dataclasses.fields(Recipe)})


def _train(options: Namespace) -> int:
    import torch

    from mpelu.train.records import RESULT
    from mpelu.train.run import prepare, run

    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda, got {options.device!r}")
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.watch is not None and options.watch < 1:
        raise UsageError(f"--watch must be at least 1, got {options.watch}")
    if options.workers < 0:
        raise UsageError(f"--workers must be at least 0, got {options.workers}")
    with _loading(show=not options.json) as on_progress:
        prepared = prepare(
            _recipe(options), seed=options.seed, runs=options.runs, workers=options.workers, on_progress=on_progress
        )
    first = os.environ.get("RANK", "0") == "0"  # set by torchrun
    spoken = first and not options.json
    finished = (prepared.folder / RESULT).exists()
    if spoken:
        _print_line(f"{'already finished' if finished else 'run folder'}: {prepared.folder}")
    with _Progress(prepared, show=spoken and sys.stdout.isatty()) as progress:

        def report(row: dict[str, Any]) -> None:
            if options.json:
                _print_json({"event": "epoch", **row})
            else:
                progress.say(_epoch_line(row, prepared.recipe.epochs or 0))

        record = run(
            prepared,
            device=options.device,
            scale=_scale(options),
            workers=options.workers,
            watch_every=options.watch,
            recompute=options.checkpoint_activations,
            on_epoch=report,
            on_step=progress.on_step,
        )
    if spoken:
        _print_line(_result_line(record))
    elif first:
        _print_json({"event": "result", "folder": str(prepared.folder), **record})
    return 0


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    left = (epochs - row["epoch"]) * row["wall_seconds"]
    return (
        f"epoch {row['epoch']}/{epochs}  lr {row['lr']:.4g}  train loss {row['train_loss']:.4f}  "
        f"test error {row['test_error_percent']:.2f} %  {_rate(row['images_per_second'])}  "
        f"{int(left // 3600)}:{int(left % 3600 // 60):02}:{int(left % 60):02} left"
    )


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:.{0 if images_per_second >= 10 else 1}f} images/s"


def _result_line(record: dict[str, Any]) -> str:
    if record["outcome"] == "diverged":
        return f"diverged after {record['steps']} steps: {record['reason']}"
    last, best = record["last"], record["best"]
    return (
        f"test error {last['test_error_percent']:.2f} % (last epoch), {best['test_error_percent']:.2f} % (best, epoch "
        f"{best['epoch']}) on {record['data']['name']}, {_rate(record['images_per_second'])}"
    )


@contextmanager
def _loading(*, show: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while images are preprocessed or opened, on a terminal."""
    from rich.progress import Progress

    with Progress(disable=not (show and sys.stdout.isatty()), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield on_progress


class _Progress:
    """A bar over the steps of an epoch on a terminal, nothing elsewhere."""

    def __init__(self, prepared: Any, *, show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from mpelu.data.batches import steps_per_epoch

        recipe, images = prepared.recipe, len(prepared.dataset.train.labels)
        self._steps = steps_per_epoch(images, recipe.batch_size)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            disable=not show,
            transient=True,
        )
        self._task = self._bar.add_task("", total=self._steps * recipe.epochs, epoch=1, rate=0.0)
        self._before = time.perf_counter()
        self._show = show

    def __enter__(self) -> "_Progress":
        self._bar.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bar.__exit__(*details)

    def say(self, text: str) -> None:
        if self._show:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        else:
            _print_line(text)

    def on_step(self, step: int, indices: Any) -> None:
        now = time.perf_counter()
        self._bar.update(
            self._task,
            completed=step + 1,
            epoch=step // self._steps + 1,
            rate=len(indices) / max(now - self._before, 1e-9),
        )
        self._before = now


# mpelu reproduce


def _reproduce_parser() -> Parser:
    command = Parser(description="Run what claims, tables and figures of the paper ask for, and say what came out.")
    command.add_argument(
        "names", type=str, nargs="+", help="claim1 to claim52, table1 to table12, figure1 to figure5; or all."
    )
    command.add_argument("--scale", type=Literal["paper", "cpu"], default="cpu", help="As published, or shortened.")
    command.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="The images, a name or a folder; at scale paper, a folder with the data set that is found in it.",
    )
    command.add_argument(
        "--seeds", type=int | None, default=None, help="Seeds of each training; not given: the study's own number."
    )
    command.add_argument(
        "--workers", type=int | None, default=None, help="Processes; not given: one for each GPU, or for each core."
    )
    command.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
    command.add_argument("--results", type=Path, default=Path("results"), help="Folder of the files of records.")
    command.add_argument(
        "--budget", type=str | None, default=None, help="Wall time, e.g. 60m: run what fits, the cheapest claims first."
    )
    command.add_argument("--shard", type=str, default="1/1", help="i/n: only the i-th of n parts of the jobs.")
    command.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto, cpu or cuda.")
    command.add_argument(
        "--launcher",
        type=Literal["local", "slurm"],
        default="local",
        help="Run here, or as a Slurm array: each task takes a shard, with one worker for each of its GPUs or cores.",
    )
    command.add_argument("--slurm_tasks", type=int, default=4, help="Tasks of the array.")
    command.add_argument("--slurm_partition", type=str | None, default=None, help="Not given: the cluster's default.")
    command.add_argument("--slurm_minutes", type=int, default=240, help="Wall time of a task; it is queued again.")
    command.add_argument("--slurm_cpus", type=int, default=4, help="Cores of a task.")
    command.add_argument("--slurm_gpus", type=int, default=0, help="GPUs of a task.")
    command.add_argument("--dry_run", action="store_true", help="Say what would be run, and how long it would take.")
    command.add_argument(
        "--json", action="store_true", help="Print a JSON line for each job that ends and for the result."
    )
    return command


def _reproduce(options: Namespace) -> int:
    from mpelu.studies import reproduce

    started = time.monotonic()
    request = _request(options)
    plan = reproduce.plan(request)
    if options.dry_run:
        _print_plan(plan, reproduce.recorded(request), request, budget=options.budget, as_json=options.json)
        return 0
    store = reproduce.open_store(request, plan)
    recorded = [name for name in plan.jobs if name in store.records]
    if options.launcher == "slurm":
        failed = _launch(request, options)
        store = reproduce.open_store(request, plan)
    else:
        board = _run_plan(plan, store, request, started=started, as_json=options.json)
        failed = {line.name: line.reason for line in board.named("failed").values()}
    wall_seconds = time.monotonic() - started
    found = reproduce.answers(plan, store.records)
    _print_outcome(plan, found, store.records, recorded, failed, as_json=options.json, wall_seconds=wall_seconds)
    for error in found.broken.values() if options.verbose else ():
        traceback.print_exception(error)
    complete = request.budget_seconds is not None or all(name in store.records for name in plan.jobs)
    return 0 if complete and not failed and not found.broken else 1


def _launch(request: Any, options: Namespace) -> dict[str, str]:
    from mpelu.studies.launch import Cluster, launch, slurm_executor

    if request.shard != (1, 1):
        raise UsageError("--launcher slurm makes shards of its own: leave out --shard, or take --launcher local")
    cluster = Cluster(
        options.slurm_tasks, options.slurm_partition, options.slurm_minutes, options.slurm_cpus, options.slurm_gpus
    )
    executor = slurm_executor(cluster, request.runs / "slurm")
    request = dataclasses.replace(request, workers=cluster.gpus or cluster.cpus)

    def say(names: list[str]) -> None:
        sys.stderr.write(f"submitted {', '.join(names)}; their output is in {request.runs / 'slurm'}\n")

    return launch(request, executor, cluster.tasks, on_submitted=say)


def _request(options: Namespace) -> Any:
    from mpelu.studies import reproduce
    from mpelu.studies.schedule import parse_duration, parse_shard

    for name in ("seeds", "workers"):
        if options[name] is not None and options[name] < 1:
            raise UsageError(f"--{name} must be at least 1, got {options[name]}")
    return reproduce.Request(
        names=tuple(options.names),
        scale=options.scale,
        data=options.data,
        seeds=options.seeds,
        runs=options.runs,
        results=options.results,
        device=options.device,
        workers=options.workers or reproduce.capacity(options.device),
        budget_seconds=None if options.budget is None else parse_duration(options.budget),
        shard=parse_shard(options.shard),
    )


def _print_plan(plan: Any, records: Any, request: Any, *, budget: str | None, as_json: bool) -> None:
    from rich.table import Table

    from mpelu.recipes.duration import in_words
    from mpelu.studies import reproduce

    rows, fits = reproduce.costs(plan, records), reproduce.chosen(plan, records, request)
    if as_json:
        for item, missing, seconds in rows:
            told = {} if budget is None else {"fits": item.name in fits}
            _print_json({"name": item.name, "jobs": len(item.keys), "missing": missing, "cpu_seconds": seconds, **told})
        return
    titles = {item.name: getattr(item, "statement", None) or item.title for item in plan.items}
    table = Table("name", "jobs", "to run", "CPU time", *([] if budget is None else [f"fits {budget}"]), "what it is")
    for item, missing, seconds in rows:
        cost = in_words(seconds) if missing else ""
        fit = [] if budget is None else ["yes" if item.name in fits else "no"]
        table.add_row(item.name, str(len(item.keys)), str(missing), cost, *fit, titles[item.name])
    _console().print(table)
    missing_jobs = [name for name in plan.jobs if name not in records]
    total = sum(plan.seconds[name] for name in missing_jobs)
    _print_line(
        f"{len(missing_jobs)} of {len(plan.jobs)} jobs to run: {in_words(total)} of CPU time, about "
        f"{in_words(total / request.workers)} with {request.workers} workers"
    )
    if budget is not None:
        first = {name for item, _, _ in rows if item.name in fits for name in item.keys}.difference(records)
        cost, left = (
            sum(plan.seconds[name] for name in first),
            [item.name for item, *_ in rows if item.name not in fits],
        )
        _print_line(
            f"{budget} with {request.workers} workers: {len(fits)} of {len(rows)} fit, {len(first)} jobs, "
            f"{in_words(cost)} of CPU time. "
            + (
                f"Not: {', '.join(left)}; single jobs of these fill what time is left"
                if left
                else "Nothing is left out"
            )
        )


def _run_plan(plan: Any, store: Any, request: Any, *, started: float, as_json: bool) -> Any:
    from rich.live import Live

    from mpelu.studies import reproduce

    console = _console()
    lively = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def note(board: Any, name: str, event: Any) -> None:
            if event.kind in ("started", "reported"):
                return
            line = board.lines[name]
            if as_json:
                _print_json({"event": event.kind, "key": name, **dataclasses.asdict(line)})
            else:
                live.console.print(_job_line(line, event.kind), highlight=False, markup=False, soft_wrap=True)

        def refresh(board: Any) -> None:
            if lively:
                live.update(_board_table(board), refresh=True)

        return reproduce.run(plan, store, request, on_event=note, on_poll=refresh, started=started)


def _job_line(line: Any, kind: str) -> str:
    if kind == "finished" and line.state == "done":
        error = "" if line.error_percent is None else f"  test error {line.error_percent:.2f} %"
        return f"done     {line.name}  {line.seconds:.0f} s{error}"
    return f"{'failed' if kind == 'finished' else kind:8} {line.name}  {line.reason}"


def _board_table(board: Any) -> Any:
    """Return the jobs that run, and how many there are of the others."""
    from rich.table import Table

    from mpelu.recipes.duration import in_words

    counts = {state: len(board.named(state)) for state in ("done", "waits", "failed")}
    table = Table(
        "job",
        "epoch",
        "test error %",
        "seconds",
        "left",
        "",
        caption=f"{board.recorded} recorded, {counts['done']} done, {counts['waits']} wait, {counts['failed']} failed; "
        f"about {in_words(board.seconds_to_go)} left",
    )
    now = time.monotonic()
    for line in board.named("runs").values():
        table.add_row(
            line.name,
            f"{line.epoch}/{line.epochs}" if line.epochs else "",
            "" if line.error_percent is None else f"{line.error_percent:.1f}",
            f"{now - line.started:.0f}",
            in_words(line.seconds_to_go),
            line.reason,
        )
    return table


def _print_outcome(
    plan: Any,
    found: Any,
    records: Any,
    recorded: list[str],
    failed: dict[str, str],
    *,
    as_json: bool,
    wall_seconds: float,
) -> None:
    from mpelu.recipes.duration import in_words
    from mpelu.studies import reproduce

    broken = {name: f"{type(error).__name__}: {_one_line(error)}" for name, error in found.broken.items()}
    incomplete = reproduce.left_out(plan, records)
    done = sum(name in records for name in plan.jobs) - len(recorded)
    if as_json:
        _print_json(
            {
                "event": "result",
                "findings": [dataclasses.asdict(finding) for finding in found.findings],
                "exhibits": [dataclasses.asdict(exhibit) for exhibit in found.exhibits],
                "recorded": len(recorded),
                "done": done,
                "failed": failed,
                "broken": broken,
                "incomplete": [{"name": name, "recorded": done, "jobs": jobs} for name, done, jobs in incomplete],
                "wall_seconds": wall_seconds,
            }
        )
        return
    console = _console()
    for exhibit in found.exhibits:
        console.print(_exhibit(exhibit), soft_wrap=isinstance(exhibit, str))
    lines = [line for finding in found.findings for line in _finding_lines(finding)]
    lines += [f"{name}: its records cannot be judged ({reason}); -v shows where" for name, reason in broken.items()]
    lines += [f"incomplete: {name} has {done} of {jobs} jobs" for name, done, jobs in incomplete]
    lines += [f"failed: {name}: {reason}" for name, reason in failed.items()]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _print_line(
        f"{len(recorded)} jobs were recorded before, {done} were run, {len(failed)} failed; {in_words(wall_seconds)}"
    )


def _exhibit(exhibit: Any) -> Any:
    """Return a table with the paper's number and ours in each cell, or the words for a picture."""
    from rich.table import Table

    from mpelu.report.grid import UNKNOWN, Cell, Picture

    if isinstance(exhibit, Picture):
        return f"{exhibit.name}: {exhibit.title}. {exhibit.caption} ({_where(exhibit)})"

    def text(cell: str | Cell) -> str:
        if isinstance(cell, str):
            return cell
        ours = cell.text
        if cell.ours is not None:
            sd = "" if cell.ours.sd is None else f" ± {cell.ours.sd:.{cell.digits}f}"
            ours = f"{cell.ours.mean:.{cell.digits}f}{sd} (n={cell.ours.n})"
        return f"{cell.paper or UNKNOWN} | {ours or UNKNOWN}"

    table = Table(
        *exhibit.columns,
        title=f"{exhibit.name}: {exhibit.title}",
        caption="\n".join((f"paper | ours, {_where(exhibit)}", *exhibit.notes)),
    )
    for row in exhibit.rows:
        table.add_row(*(text(cell) for cell in row))
    return table


def _where(result: Any) -> str:
    return f"scale {result.scale}" + (f", {result.data}" if result.data else "")


def _finding_lines(finding: Any) -> Iterator[str]:
    yield f"claim{finding.claim}: {finding.outcome} ({_where(finding)})"
    yield f"  {finding.statement}"
    if finding.evidence:
        yield f"  {finding.evidence}"
    for interval in finding.intervals:
        unit = f" {interval.unit}" if interval.unit else ""
        yield (
            f"  {interval.quantity}: {interval.estimate:.4g}{unit} [{interval.low:.4g}, {interval.high:.4g}], "
            f"n = {interval.n}, {interval.method}"
        )
    if finding.differs:
        yield f"  differs from the paper: {finding.differs}"


# mpelu evaluate


def _evaluate_parser() -> Parser:
    command = Parser(description="Test a trained network again, on its own data or on other images.")
    command.add_argument("run", type=Path, help="The run folder that 'mpelu train' printed, or an exported folder.")
    command.add_argument(
        "--weights", type=str | None, default=None, help="Of a run: last (if not given) or best epoch."
    )
    command.add_argument(
        "--data", type=str | None, default=None, help="Another data set with the same classes; an export needs one."
    )
    command.add_argument(
        "--model", type=str | None, default=None, help="Of an export of a network of your own: file.py:function."
    )
    command.add_argument("--workers", type=int, default=0, help="Processes that decode photographs.")
    command.add_argument("--json", action="store_true", help="Print one JSON object.")
    return command


def _evaluate(options: Namespace) -> int:
    from mpelu.deploy import evaluate

    result = evaluate(
        options.run, weights=options.weights, data=options.data, model=options.model, workers=options.workers
    )
    if options.json:
        _print_json(dataclasses.asdict(result))
    else:
        skipped = f" ({result.skipped_images} more cannot be read)" if result.skipped_images else ""
        _print_line(
            f"test error {result.test_error_percent:.2f} %, loss {result.test_loss:.4f}, {result.images} images of "
            f"{result.data}{skipped}, weights of the {result.weights} epoch ({result.epoch}), "
            f"{_rate(result.images_per_second)}"
        )
    return 0


# mpelu predict


def _predict_parser() -> Parser:
    command = Parser(description="Say what is on images: the most probable classes of each.")
    command.add_argument("network", type=str, help="A run folder, an exported folder, or owner/name on the Hub.")
    command.add_argument(
        "images", type=str, nargs="*", default=[], help="Images, folders, quoted patterns; - is one image on stdin."
    )
    command.add_argument("--list", type=str | None, default=None, help="A file with a path on each line; - is stdin.")
    command.add_argument("--top", type=int, default=5, help="Classes to name; all of them if there are fewer.")
    command.add_argument("--batch", type=int, default=64, help="Images that are computed together.")
    command.add_argument(
        "--weights", type=str | None, default=None, help="Of a run: last (if not given) or best epoch."
    )
    command.add_argument(
        "--model", type=str | None, default=None, help="Of an export of a network of your own: file.py:function."
    )
    command.add_argument("--threads", type=int | None, default=None, help="CPU threads; not given: torch's choice.")
    command.add_argument("--json", action="store_true", help="Print a JSON line for each image, as it is answered.")
    return command


def _predict(options: Namespace) -> int:
    from rich.table import Table

    from mpelu.deploy import open_network, predict
    from mpelu.deploy.images import sources

    _set_threads(options.threads)
    asked = list(sources(options.images, listed=options.list))
    network = open_network(options.network, weights=options.weights, model=options.model)
    shown, failed = [], 0
    for prediction in predict(network, asked, top=options.top, batch=options.batch):
        if prediction.error is not None:
            failed += 1
            sys.stderr.write(f"mpelu: {prediction.image}: {prediction.error}\n")
        if not options.json:
            shown.append(prediction)
        elif prediction.error is not None:
            _print_json({"image": prediction.image, "error": prediction.error})
        else:
            _print_json({"image": prediction.image, "top": [dataclasses.asdict(guess) for guess in prediction.top]})
    answered = [prediction for prediction in shown if prediction.error is None]
    if answered:
        table = Table("image", *(f"{place}." for place in range(1, 1 + len(answered[0].top))))
        for prediction in answered:
            guesses = (f"{guess.label} {100 * guess.probability:.1f} %" for guess in prediction.top)
            table.add_row(prediction.image, *guesses)
        _console().print(table)
    if failed:
        sys.stderr.write(f"mpelu: {failed} {'image' if failed == 1 else 'images'} could not be read\n")
    return 1 if failed else 0


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    import torch

    torch.set_num_threads(threads)


# mpelu export


def _export_parser() -> Parser:
    command = Parser(
        description="Write a trained network for other programs, after checking that it computes the same."
    )
    command.add_argument("network", type=str, help="A run folder, an exported folder, or owner/name on the Hub.")
    command.add_argument(
        "--format",
        type=Literal["safetensors", "onnx", "program"],
        default="safetensors",
        help="A folder with weights, config and card; an ONNX file; or a file for torch.export.load.",
    )
    command.add_argument("--out", type=Path, required=True, help="The folder (safetensors) or file to write.")
    command.add_argument(
        "--fold", action="store_true", help="Absorb wrappers of tailored activations into the weights."
    )
    command.add_argument(
        "--weights", type=str | None, default=None, help="Of a run: last (if not given) or best epoch."
    )
    command.add_argument(
        "--model", type=str | None, default=None, help="Of an export of a network of your own: file.py:function."
    )
    command.add_argument("--json", action="store_true", help="Print one JSON object.")
    return command


def _export(options: Namespace) -> int:
    import torch

    from mpelu.deploy import export, open_network

    torch.set_num_threads(1)  # a few images: more threads only wait for each other
    network = open_network(options.network, weights=options.weights, model=options.model)
    done = export(network, options.out, format=options.format, fold=options.fold)
    fold = None if done.fold is None else [dataclasses.asdict(row) for row in done.fold.rows]
    if options.json:
        _print_json({**vars(done), "path": str(done.path), "fold": fold})
        return 0
    if done.fold is not None:
        _print_line(str(done.fold))
        _print_line(f"folding changed the outputs by at most {done.fold_difference:.2g}")
    _print_line(
        f"{done.path} written: {done.bytes:,} bytes, {done.wall_seconds:.1f} s; compared with {done.compared_with}: "
        f"outputs differ by at most {done.largest_difference:.2g}, the largest is {done.largest_output:.3g}"
    )
    return 0


# mpelu models


def _models_parser() -> Parser:
    command = Parser(description="List the networks, with parameters, multiply-adds and memory.")
    command.add_argument("--json", action="store_true", help="Print a JSON array.")
    return command


def _models(options: Namespace) -> int:
    import torch
    from rich.table import Table

    from mpelu.models import list_models

    torch.set_num_threads(1)  # single images: more threads only wait for each other
    models = list_models()
    if options.json:
        _print_json([dataclasses.asdict(model) for model in models])
        return 0
    table = Table("name", "depth", "parameters", "multiply-adds", "kept / image", "image", "what it is")
    for model in models:
        shape = "x".join(str(side) for side in model.image_shape)
        counts = f"{model.parameters:,}", f"{model.multiply_adds:,}", f"{model.activation_bytes / 1e6:.1f} MB"
        table.add_row(model.name, str(model.depth), *counts, shape, model.about)
    _console().print(table)
    return 0


# mpelu init


def _init_parser() -> Parser:
    command = Parser(description="Print how every parameter of a network would be initialized, and why.")
    command.add_argument(
        "model",
        type=str,
        help="Family and depth, e.g. plain30; or a factory of your own, module:function or file.py:function.",
    )
    command.add_argument(
        "--shape", type=str | None, default=None, help="Of one input, e.g. 3,32,32. Needed for a factory of your own."
    )
    command.add_argument(
        "--activation", type=str, default="mpelu", help="relu, lrelu, prelu, elu, spelu, mpelu or srelu."
    )
    command.add_argument("--alpha", type=float | None, default=None, help="Start value of alpha, or slope.")
    command.add_argument("--beta", type=float | None, default=None, help="Start value of beta.")
    command.add_argument(
        "--method",
        type=str,
        default="auto",
        help="auto, tailored, critical, second_moment, eq22, released, msra, xavier or gaussian.",
    )
    command.add_argument("--mode", type=str, default="fan_in", help="fan_in, fan_out or average.")
    command.add_argument("--std", type=float, default=0.01, help="Standard deviation of gaussian.")
    command.add_argument("--seed", type=int, default=0, help="Of the weights; calibration depends on it.")
    command.add_argument("--json", action="store_true", help="Print a JSON object.")
    return command


def _init(options: Namespace) -> int:
    import torch

    from mpelu.init import plan, tailor

    model, shape = _model_and_shape(options)
    example = torch.zeros(1, *shape)
    rows = (
        tailor(model, example, seed=options.seed)
        if options.method == "tailored"
        else plan(model, example, method=options.method, mode=options.mode, std=options.std, seed=options.seed)
    )
    _print_line(rows.to_json() if options.json else str(rows))
    return 0


def _model_and_shape(options: Namespace) -> tuple[Any, tuple[int, ...]]:
    """Build the network that the options name, and return it with the shape of one input."""
    from mpelu.models import FAMILIES, create_model, load_factory, parse_name

    if ":" in options.model:
        if options.shape is None:
            raise UsageError(f"{options.model} needs --shape, the shape of one input, e.g. --shape 3,32,32")
        return load_factory(options.model)(), _shape(options.shape)
    family, _ = parse_name(options.model)
    shape = FAMILIES[family].image_shape if options.shape is None else _shape(options.shape)
    model = create_model(
        options.model, activation=options.activation, alpha=options.alpha, beta=options.beta, in_channels=shape[0]
    )
    return model, shape


def _shape(text: str, option: str = "--shape") -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"{option} must be positive whole numbers with commas, e.g. 3,32,32, got {text!r}")
    return sizes


# mpelu diagnose


VIEWS = ("distribution", "residual", "learned")


def _diagnose_parser() -> Parser:
    command = Parser(
        description="Say whether the signal passes through a network, and if not, where, why and what helps."
    )
    command.add_argument(
        "model",
        type=str,
        help="Family and depth, e.g. plain30; a factory of your own, module:function or file.py:function; or the "
        "folder of a run.",
    )
    command.add_argument(
        "--shape", type=str | None, default=None, help="Of one input, e.g. 3,32,32. Needed for a factory of your own."
    )
    command.add_argument("--batch", type=int, default=16, help="Number of examples, at least 2.")
    command.add_argument(
        "--data", type=str | None, default=None, help="A data set to take examples and labels from; else N(0, 1)."
    )
    command.add_argument(
        "--activation", type=str, default="mpelu", help="relu, lrelu, prelu, elu, spelu, mpelu or srelu."
    )
    command.add_argument("--alpha", type=float | None, default=None, help="Start value of alpha, or slope.")
    command.add_argument("--beta", type=float | None, default=None, help="Start value of beta.")
    command.add_argument(
        "--init",
        type=str,
        default="default",
        help="As 'mpelu init --method', e.g. auto or tailored; default leaves the weights as the model comes.",
    )
    command.add_argument("--weights", type=str, default="last", help="Of a run folder: last or best epoch.")
    command.add_argument("--lr", type=float | None, default=None, help="Show the step that SGD would take with it.")
    command.add_argument("--seed", type=int, default=0, help="Of weights, examples and dropout.")
    command.add_argument(
        "--compare", type=Path | None, default=None, help="JSON of another diagnosis, shown as before."
    )
    command.add_argument(
        "--views", nargs="+", default=[], help=f"Analyses of the paper, also on the page: {', '.join(VIEWS)}."
    )
    command.add_argument(
        "--layers", type=str | None, default=None, help="Of the view distribution, weights by number: 1,7,14,20,27."
    )
    command.add_argument("--json", action="store_true", help="Print the diagnosis as JSON, without the views.")
    command.add_argument("--svg", type=Path | None, default=None, help="Write the figure to this file.")
    command.add_argument("--out", type=Path | None, default=None, help="Write a page to this file.")
    command.add_argument("--check", action="store_true", help="Exit with 1 unless the verdict is healthy.")
    return command


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is diagnosed: a network, examples, their labels if there are any, and what the page is called."""

    model: Any
    example: Any
    target: Any
    title: str


def _diagnose(options: Namespace) -> int:
    from mpelu.diagnostics import Diagnosis, diagnose
    from mpelu.diagnostics.page import render_diagnosis
    from mpelu.diagnostics.pictures import signal_figure
    from mpelu.diagnostics.text import comparison
    from mpelu.report import standalone

    _check_diagnose(options)
    if options.compare is not None and not options.compare.is_file():
        raise UsageError(f"--compare needs the file of a diagnosis (mpelu diagnose ... --json), got {options.compare}")
    before = None if options.compare is None else Diagnosis.from_json(options.compare.read_text(encoding="utf-8"))
    subject = _subject(options)
    found = diagnose(
        subject.model,
        subject.example,
        target=subject.target,
        optimizer=_sgd(subject.model, options.lr),
        seed=options.seed,
    )
    views = [_view(name, subject, options) for name in options.views]
    if options.json:
        _print_line(found.to_json())
    else:
        _print_line(str(found) if before is None else comparison(before, found))
        for view in views:
            _print_line(f"\n{view.heading}\n{view.table}".rstrip())
    if options.svg is not None:
        _write_text(options.svg, standalone(signal_figure(found, before)))
        sys.stderr.write(f"{options.svg} written\n")
    if options.out is not None:
        _write_text(options.out, render_diagnosis(found, title=subject.title, before=before, views=views))
        sys.stderr.write(f"{options.out} written\n")
    return 1 if options.check and found.verdict.state != "healthy" else 0


def _check_diagnose(options: Namespace) -> None:
    unknown = [name for name in options.views if name not in VIEWS]
    if unknown:
        raise UsageError(f"unknown view {', '.join(unknown)}; known: {', '.join(VIEWS)}")
    if options.batch < 2:
        raise UsageError(f"--batch must be at least 2, for correlations, got {options.batch}")
    if "learned" in options.views and not Path(options.model).is_dir():
        raise UsageError(f"the view learned needs the folder of a run in the place of the model, got {options.model}")


def _subject(options: Namespace) -> _Subject:
    """Build the network that the options name, or load it from a run, and take examples for it."""
    import torch

    from mpelu.data import load, normalize
    from mpelu.init import initialize, tailor

    if Path(options.model).is_dir():
        return _subject_of_run(options)
    data = None if options.data is None else load(options.data)
    if data is not None and options.shape is None:
        options.shape = ",".join(map(str, data.train.images.shape[1:]))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model, shape = _model_and_shape(options)
        if data is None:
            example, target = torch.randn(options.batch, *shape), None
        else:
            example = normalize(data.train.images[: options.batch], data.mean, data.std)
            target = data.train.labels[: options.batch]
    if options.init == "tailored":
        tailor(model, example[:1], seed=options.seed)
    elif options.init != "default":
        initialize(model, example[:1], method=options.init, seed=options.seed)
    inputs = f"{options.batch} inputs of N(0, 1)" if data is None else f"{options.batch} images of {data.name}"
    return _Subject(model, example, target, f"{options.model}, {inputs}")


def _subject_of_run(options: Namespace) -> _Subject:
    """Load the network of a run, with images that it was trained on."""
    from mpelu.train.evaluation import load_trained
    from mpelu.train.supply import examples_of, other_data

    trained = load_trained(Path(options.model), weights=options.weights)
    recipe, data = trained.recipe, trained.dataset
    if options.data is not None:
        data = other_data(recipe, options.data, data)
    images, labels = examples_of(recipe, data, options.batch)
    title = f"{recipe.model} after {trained.epoch} epochs, {len(images)} images of {data.name}"
    return _Subject(trained.net, images, labels, title)


def _sgd(model: Any, lr: float | None) -> Any:
    import torch

    return None if lr is None else torch.optim.SGD(model.parameters(), lr=lr)


def _view(name: str, subject: _Subject, options: Namespace) -> Any:
    from mpelu.diagnostics.distribution import distributions
    from mpelu.diagnostics.linearization import residuals
    from mpelu.diagnostics.page import distribution_view, learned_view, residual_view
    from mpelu.train.learned import learned

    if name == "learned":
        return learned_view(learned(Path(options.model)))
    if name == "residual":
        return residual_view(residuals(subject.model, subject.example, seed=options.seed))
    layers = None if options.layers is None else _shape(options.layers, option="--layers")
    return distribution_view(distributions(subject.model, subject.example, layers=layers, seed=options.seed))


# mpelu recipes


def _recipes_parser() -> Parser:
    command = Parser(description="List the recipes behind the tables of the paper, or show one of them.")
    command.add_argument("name", type=str | None, nargs="?", default=None, help="One of them, or module:name.")
    command.add_argument("--markdown", action="store_true", help="Print the list as Markdown.")
    command.add_argument("--json", action="store_true", help="Print JSON.")
    return command


def _recipes(options: Namespace) -> int:
    from rich.table import Table

    from mpelu.recipes import listing, row, rows

    if options.name is not None:
        _show_row(row(options.name), as_json=options.json)
    elif options.json:
        _print_json([listing.as_json(each) for each in rows()])
    elif options.markdown:
        _print_line(listing.markdown(rows()))
    else:
        table = Table(*listing.HEADERS, caption="Durations are those of one run on one core; ≈ was not measured.")
        for cells in listing.overview(rows()):
            table.add_row(*cells)
        _console().print(table)
    return 0


def _show_row(row: Any, *, as_json: bool) -> None:
    from rich.table import Table

    from mpelu.recipes import listing

    if as_json:
        _print_json(listing.as_json(row))
        return
    table = Table("field", "scale paper", "scale cpu", "--follow code", title=f"{row.name}: {row.about}")
    for cells in listing.fields(row):
        table.add_row(*cells)
    _console().print(table)
    sections = {
        "Stands for": listing.targets(row),
        "Scale cpu": list(row.factors),
        "Duration of a run": listing.durations(row),
    }
    for heading, lines in sections.items():
        if lines:
            _print_line("\n".join([heading, *(f"  {line}" for line in lines)]))


# mpelu data


def _data_parser() -> Parser:
    command = Parser(description="List the data sets, or check one by opening every image.")
    command.add_argument("action", type=Literal["list", "check"], help="What to do.")
    command.add_argument("source", type=str | None, nargs="?", default=None, help="Of check: a name, or a folder.")
    command.add_argument("--resize", type=int | None, default=None, help="Scale every image to this size in pixels.")
    command.add_argument("--stream", action="store_true", help="Open photographs one by one, e.g. those of ImageNet.")
    command.add_argument("--workers", type=int, default=0, help="Of --stream: processes that decode.")
    command.add_argument("--json", action="store_true", help="Print JSON.")
    return command


def _data(options: Namespace) -> int:
    from rich.table import Table

    from mpelu.data import check, check_photographs, describe

    if options.action == "check":
        if options.source is None:
            raise UsageError("'mpelu data check' needs a name or a folder, e.g. 'mpelu data check digits'")
        if options.stream:
            with _loading(show=not options.json) as on_progress:
                report = check_photographs(options.source, workers=options.workers, on_progress=on_progress)
        else:
            report = check(options.source, resize=options.resize)
        if options.json:
            _print_json(dataclasses.asdict(report))
        else:
            table = Table(show_header=False)
            for heading, text in report.rows():
                table.add_row(heading, text)
            _console().print(table)
        return 1 if report.damaged else 0
    rows = describe()
    if options.json:
        _print_json(rows)
        return 0
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    _console().print(table)
    return 0


# mpelu report


def _report_parser() -> Parser:
    command = Parser(
        description="Show what finished runs say: about the paper's claims, tables and figures if runs of "
        "'mpelu reproduce' are among them, else a table of results. The page stands alone."
    )
    command.add_argument(
        "runs", type=Path, nargs="*", default=[Path("runs")], help="Folders of runs, or .jsonl files of records."
    )
    command.add_argument("--study", type=str | None, default=None, help="Only a table of the runs of this study.")
    command.add_argument(
        "--only",
        type=Literal["headline", "claims", "tables", "figures"] | None,
        default=None,
        help="Of what is printed about the paper, only this; as Markdown.",
    )
    command.add_argument("--figures", type=Path | None, default=None, help="Write the pictures as SVG to this folder.")
    command.add_argument("--out", type=Path | None, default=None, help="Write the page to this file.")
    command.add_argument("--markdown", action="store_true", help="Print Markdown.")
    command.add_argument("--json", action="store_true", help="Print the records, a JSON line each.")
    command.add_argument("--title", type=str | None, default=None, help="Title of the page.")
    return command


def _report(options: Namespace) -> int:
    from mpelu.studies.findings import belongs
    from mpelu.train.records import find_results

    if options.study is not None and options.only is not None:
        raise UsageError(f"--only {options.only} is about the paper, --study {options.study} is not: give one of them")
    records = [record for record in find_results(options.runs) if options.study in (None, record.get("study"))]
    if not records:
        raise MpeluError(f"no finished run of study {options.study!r}; leave out --study to see them all")
    if options.json:
        for record in records:
            _print_json(record)
        if options.out is None and options.figures is None:
            return 0
    about_the_paper = options.only is not None or (options.study is None and any(map(belongs, records)))
    return _report_paper(records, options) if about_the_paper else _report_runs(records, options)


def _report_paper(records: Sequence[dict[str, Any]], options: Namespace) -> int:
    from mpelu.report import claims_table, render_reproduction, reproduction_markdown, standalone
    from mpelu.report.grid import Picture
    from mpelu.studies.findings import reproduction

    only_claims = options.only in ("headline", "claims") and options.out is None and options.figures is None
    found = reproduction(records, exhibits=not only_claims)
    if options.markdown or options.only is not None:
        _print_line(reproduction_markdown(found, options.only))
    elif not options.json:
        _console().print(claims_table(found))
    if found.left_out:
        sys.stderr.write(f"records of other studies left out: {found.left_out}; --study shows one study\n")
    if options.figures is not None:
        for shown in found.exhibits:
            pictures = [view for view in shown.views if isinstance(view, Picture) and view.svg]
            for number, view in enumerate(pictures, start=1):
                name = shown.name if number == 1 else f"{shown.name}-{number}"
                _write_text(options.figures / f"{name}.svg", standalone(view.svg))
    if options.out is not None:
        title = {} if options.title is None else {"title": options.title}
        _write_text(options.out, render_reproduction(found, **title))
        sys.stderr.write(f"{options.out} written\n")
    return 0


def _report_runs(given: Sequence[dict[str, Any]], options: Namespace) -> int:
    from mpelu.report import (
        error_curves,
        find_signals,
        is_measurement,
        loss_curves,
        markdown_table,
        render_page,
        results_table,
        signal_figures,
        signal_table,
        standalone,
        summarize,
    )

    records = [record for record in given if not is_measurement(record)]
    if not records:
        raise MpeluError("there is no training among these records, only measurements; leave out --study")
    summaries, signals = summarize(records), find_signals(options.runs, records)
    if options.markdown:
        _print_line(markdown_table(summaries))
    elif not options.json:
        _console().print(results_table(summaries))
        if signals:
            _console().print(signal_table(signals))
    if options.figures is not None:
        _write_text(options.figures / "train-loss.svg", standalone(loss_curves(summaries)))
        _write_text(options.figures / "test-error.svg", standalone(error_curves(summaries)))
        for signal in signals:
            for key, svg in signal_figures(signal.steps, name=signal.name).items():
                _write_text(options.figures / f"{signal.name}-{key.replace('_', '-')}.svg", standalone(svg))
    if options.out is not None:
        title = options.title or "Runs"
        page = render_page(records, title=title, lead=f"{len(records)} runs.", how_to_read=(), signals=signals)
        _write_text(options.out, page)
        sys.stderr.write(f"{options.out} written\n")
    return 0


# mpelu bench


def _bench_parser() -> Parser:
    command = Parser(description="Time activations or training steps on this machine, or print the table of a file.")
    command.add_argument("what", type=Literal["activation", "model"], help="What to time.")
    command.add_argument("--only", type=str | None, default=None, help="A shape such as 128,64,32,32, or a network.")
    command.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="Of activation.")
    command.add_argument("--compiled", nargs="+", default=[], help="Of activation: also under torch.compile.")
    command.add_argument("--rounds", type=int | None, default=None, help="More rounds, steadier numbers.")
    command.add_argument("--threads", type=int, default=1, help="CPU threads; the time is that of the calling one.")
    command.add_argument("--csv", type=Path | None, default=None, help="Append the rows to this file.")
    command.add_argument("--table", type=Path | None, default=None, help="Time nothing: print the table of this file.")
    return command


def _bench(options: Namespace) -> int:
    import torch

    from mpelu.bench import activation, model, tables, timing

    table = {"activation": tables.activation_table, "model": tables.model_table}[options.what]
    if options.table is not None:
        sys.stdout.write(table(timing.read(options.table)))
        return 0
    torch.set_num_threads(options.threads)
    only = {} if options.rounds is None else {"rounds": options.rounds}
    if options.what == "activation":
        unknown = [name for name in options.dtypes if name not in activation.DTYPES]
        unknown += [name for name in options.compiled if name not in activation.PROVIDERS]
        if unknown:
            known = ", ".join((*activation.DTYPES, *activation.PROVIDERS))
            raise UsageError(f"unknown dtype or activation {', '.join(unknown)}; known: {known}")
        shapes = activation.SHAPES if options.only is None else (options.only,)
        if not all(re.fullmatch(r"\d+(,\d+)+", shape) for shape in shapes):
            raise UsageError(f"--only must be sizes with commas, such as 128,64,32,32, got {options.only}")
        parts = activation.bench(shapes=shapes, dtypes=options.dtypes, compiled=options.compiled, **only)
    else:
        networks = tuple(model.NETWORKS) if options.only is None else (options.only,)
        parts = model.bench(networks=networks, **only)
    rows = []
    for part in parts:
        rows += part
        if options.csv is not None:
            timing.append(options.csv, part)
        sys.stderr.write(f"{part[0].subject} {part[0].layout} {part[0].dtype}\n")
    sys.stdout.write(table(rows))
    return 0


COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[Namespace], int]]] = {
    "demo": (_demo_parser, _demo),
    "train": (_train_parser, _train),
    "evaluate": (_evaluate_parser, _evaluate),
    "predict": (_predict_parser, _predict),
    "export": (_export_parser, _export),
    "report": (_report_parser, _report),
    "models": (_models_parser, _models),
    "recipes": (_recipes_parser, _recipes),
    "init": (_init_parser, _init),
    "diagnose": (_diagnose_parser, _diagnose),
    "data": (_data_parser, _data),
    "reproduce": (_reproduce_parser, _reproduce),
    "bench": (_bench_parser, _bench),
}
