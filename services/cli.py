"""The command line: options, help texts and exit codes. What a command does is in services/commands/.

Everything heavy is imported inside the commands, so that help and completion answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from services import (
    cli_arming,
    cli_bench,
    cli_data,
    cli_deadletters,
    cli_export,
    cli_jobs,
    cli_models,
    cli_oneshot,
    cli_recipes,
    cli_replay,
    cli_run,
    cli_train,
)
from services.cli_options import (
    MODEL_HELP,
    ConfigOption,
    Engine,
    FormatOption,
    JsonOption,
    Level,
    LevelOption,
    LogStyle,
    Role,
    load_config,
    log_options,
)

app = typer.Typer(
    name="sparsecam",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, URLs with passwords among them
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Camera streams to alerts on ordinary CPUs.\n\n"
    "Start with `sparsecam demo`, then write a sparsecam.yaml (sparsecam.example.yaml explains every key), "
    "look it over with `sparsecam check sparsecam.yaml`, and run `sparsecam up`.",
    epilog="Exit codes: 0 done, 1 the answer is no (check, doctor, health), 2 wrong usage, 78 cannot run as "
    "configured, 70 a bug.",
)


@contextmanager
def _in_words() -> Iterator[None]:
    """Whatever goes wrong becomes words on stderr and an exit code; warnings of our rooms go to stderr too."""
    try:
        from wire.logs import setup_logs

        setup_logs("warning")
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # what a shell expects after Ctrl-C
    except BrokenPipeError:
        # `sparsecam alerts | head`: the reader has gone; also keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except Exception as error:  # the last line of defence: a person gets words and not a bare traceback
        from services.process import print_error

        raise typer.Exit(print_error(error)) from None


def _words(text: str) -> list[str] | None:
    return [word.strip() for word in text.split(",")] if text.strip() else None


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def up(
    *, config: ConfigOption = None, log_level: LevelOption = Level.info, log_format: FormatOption = LogStyle.console
) -> None:
    """Run everything on this host: broker, ingest, detector workers, sink, and Valkey where redis.url is empty.

    Processes that die are started again. Ctrl-C or SIGTERM stops all of them within five seconds.
    """
    with _in_words():
        from services.commands import up as command

        loaded, path = load_config(config)
        raise typer.Exit(command.up(loaded, path, log_options(log_level, log_format)))


@app.command()
def check(
    *,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="[FILE]", help="The config file to check. Default: as for --config of other commands."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also open each camera for one picture, and load the model.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a config file: every problem with its line and column, and what was meant.

    Exit code 1 when anything is wrong; a warning, such as a video that is not there yet, is 0.
    """
    with _in_words():
        from services.commands import check as command

        raise typer.Exit(command.check(file, probe=probe, as_json=as_json))


@app.command()
def alerts(
    *,
    config: ConfigOption = None,
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--since", metavar="ID", help="First those after this alert id (as printed), then follow."),
    ] = None,
    last: Annotated[int, typer.Option("--last", metavar="N", min=0, help="First the newest N, then follow.")] = 0,
    follow: Annotated[bool, typer.Option(help="Wait for new alerts; --no-follow ends after the stored ones.")] = True,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--count", metavar="N", min=1, help="End after N alerts."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print alerts as they happen. Redis may go away and come back meanwhile; no alert is missed or shown twice."""
    with _in_words():
        from services.commands import alerts as command

        loaded, _ = load_config(config)
        raise typer.Exit(command.alerts(loaded, since=since, last=last, follow=follow, count=count, as_json=as_json))


@app.command()
def annotate(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    source: Annotated[
        str, typer.Option("--source", "-s", help="Video file, image, folder of images, RTSP/HTTP URL or webcam number.")
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="An .mp4 file, or a folder for images. Default: out/ named by the source."),
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", "-e", help="Inference engine.")] = Engine.auto,
    num_cores: Annotated[int, typer.Option("--num-cores", min=1, max=256, help="Physical cores to use.")] = 1,
    conf_thres: Annotated[
        float, typer.Option("--conf-thres", min=0, max=1, help="Least score of a box (0..1).")
    ] = 0.25,
    iou_thres: Annotated[
        float, typer.Option("--iou-thres", min=0, max=1, help="Boxes of a class that overlap more are one (0..1).")
    ] = 0.45,
    image_shape: Annotated[
        Optional[tuple[int, int]],  # noqa: UP045
        typer.Option("--image-shape", metavar="HEIGHT WIDTH", help="Input size (pixels). Default: the model's own."),
    ] = None,
    labels: Annotated[
        str, typer.Option("--labels", help="Class names in order, with commas between. Default: the model's own.")
    ] = "",
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--seconds", min=0.1, help="End after this long; a live source ends by Ctrl-C otherwise."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw what a model finds into a video or images; prints FPS and the average inference time at the end."""
    with _in_words():
        from services.commands import annotate as command
        from services.model_names import model_file

        job = command.Job(
            model=model_file(model),
            source=source,
            output=output,
            engine=engine.value,
            num_cores=num_cores,
            conf_thres=conf_thres,
            iou_thres=iou_thres,
            image_shape=image_shape,
            labels=_words(labels),
            seconds=seconds,
        )
        raise typer.Exit(command.annotate(job, as_json=as_json))


@app.command()
def keys(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write them; made if it is not there.")],
) -> None:
    """Make CURVE keys for frames over tcp://: one pair for the broker, one for ingest and workers.

    Copy the folder to each host that takes part and set link.curve_dir to it. Keys that are there already are kept,
    and the command refuses.
    """
    with _in_words():
        from services.commands import keys as command

        raise typer.Exit(command.keys(folder))


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look this machine over: CPU and its instructions, cores and limits, engines, Redis, ports; and how to mend it.

    Exit code 1 when something is broken; a warning alone is 0.
    """
    with _in_words():
        from services.commands import doctor as command

        raise typer.Exit(command.doctor(config, as_json=as_json))


@app.command()
def health(
    *,
    role: Annotated[Optional[Role], typer.Argument(help="One process; default: all of this host.")] = None,  # noqa: UP045
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the processes of this host work; exit code 0 or 1, for container health checks."""
    with _in_words():
        from services.commands import health as command

        raise typer.Exit(command.health(role.value if role else None, config, as_json=as_json))


@app.command()
def demo(
    *,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "-s",
            help="File, folder, RTSP URL, webcam number or sim://. Default: two simulated cameras.",
        ),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"{MODEL_HELP} Default: the street's, for simulated cameras.")
    ] = "",
    labels: Annotated[
        str, typer.Option("--labels", help="Class names in order, with commas between. Default: the model's own.")
    ] = "",
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=0,
            help="End after this long, repeating a file until then. Default: a file once, anything else until Ctrl-C.",
        ),
    ] = 0.0,
    as_json: JsonOption = False,
    log_level: LevelOption = Level.warning,
) -> None:
    """Run everything on one source with an embedded Valkey, print alerts as they happen, and a summary at the end."""
    with _in_words():
        from services.commands import demo as command

        options = command.Options(source, model, _words(labels), seconds, log_options(log_level, LogStyle.console))
        raise typer.Exit(command.demo(options, as_json=as_json))


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    import json

    from wire.metrics import package_version

    typer.echo(json.dumps({"version": package_version()}) if as_json else f"sparsecam {package_version()}")


cli_run.register(app, _in_words)
cli_arming.register(app, _in_words)
cli_deadletters.register(app, _in_words)
cli_bench.register(app, _in_words)
cli_data.register(app, _in_words)
cli_models.register(app, _in_words)
cli_jobs.register(app, _in_words)
cli_oneshot.register(app, _in_words)
cli_recipes.register(app, _in_words)
cli_replay.register(app, _in_words)
cli_train.register(app, _in_words)
cli_export.register(app, _in_words)


def main() -> None:
    """Entry point of the `sparsecam` program."""
    # As on stderr: a file's name that is no UTF-8 is shown escaped instead of ending the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="sparsecam")


if __name__ == "__main__":
    main()
