"""The options of `sparsecam bench` and `sparsecam plan`; the work is in services/bench/."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from services.cli_options import MODEL_HELP, Engine

InWords = Callable[[], AbstractContextManager[None]]


class Scenario(str, Enum):
    """--scenario"""

    sync = "sync"
    asynchronous = "async"


class Profile(str, Enum):
    """--profile"""

    all = "all"
    keyframes = "keyframes"
    adaptive = "adaptive"


# Optional[...] and not `| None` since click's older converters know only that.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of tables for a person.")]
ModelOption = Annotated[Path, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)]
EngineOption = Annotated[Engine, typer.Option("--engine", "-e", help="Inference engine, or auto.")]
WarmUpOption = Annotated[float, typer.Option("--warmup", min=0, help="Run this long before measuring (seconds).")]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    bench = typer.Typer(no_args_is_help=True, help="Measure: the engine alone, or the whole live path beside it.")
    app.add_typer(bench, name="bench")

    @bench.command("engine")
    def engine(
        *,
        model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
        names: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option("--engine", "-e", help="An engine; may be repeated. Default: all that are installed."),
        ] = None,
        num_cores: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--num-cores", min=1, help="Cores a stream. Default: all for sync, one for async."),
        ] = None,
        batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=256, help="Pictures in one run.")] = 1,
        image_shape: Annotated[
            Optional[tuple[int, int]],  # noqa: UP045
            typer.Option(
                "--image-shape", metavar="HEIGHT WIDTH", help="Input size (pixels). Default: the model's own."
            ),
        ] = None,
        scenario: Annotated[
            Scenario,
            typer.Option(help="sync: one stream, for latency. async: as many as the cores hold, for throughput."),
        ] = Scenario.sync,
        streams: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--streams", min=1, help="Worker processes of async. Default: as many as the cores hold."),
        ] = None,
        seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Measure this long (seconds).")] = 10.0,
        warmup: WarmUpOption = 2.0,
        as_json: JsonOption = False,
    ) -> None:
        """The bare engine on a model: items a second, and latency by mean, median, p90, p95, p99, std.

        Each engine runs in processes of its own, pinned to their cores; one that aborts is reported, not fatal.
        """
        with in_words():
            from services.bench import engine as command
            from services.model_names import model_file

            job = command.Job(
                model_file(model), names or [], num_cores, batch, image_shape, scenario.value, streams, seconds, warmup
            )
            raise typer.Exit(command.bench_engine(job, as_json=as_json))

    @bench.command("pipeline")
    def pipeline(
        *,
        model: ModelOption,
        source: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option(
                "--source", "-s", help="File, folder, RTSP URL or sim://; may be repeated. Default: simulated."
            ),
        ] = None,
        sources: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option(
                "--sources", min=1, max=1000, help="Cameras, over the sources in turns. Default: one a source."
            ),
        ] = None,
        workers: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--workers", min=1, help="Detector workers. Default: as many as the cores hold."),
        ] = None,
        name: EngineOption = Engine.auto,
        cores: Annotated[str, typer.Option("--cores", help="Use only these CPUs, such as 0,1 or 0-3.")] = "",
        cores_per_worker: Annotated[int, typer.Option("--cores-per-worker", min=1, help="Cores a worker.")] = 1,
        square: Annotated[
            bool, typer.Option("--square", help="Letterbox everything into the full input shape.")
        ] = False,
        live: Annotated[
            bool, typer.Option("--live", help="Serve files as RTSP cameras at their own rate: drops, age, fairness.")
        ] = False,
        profile: Annotated[Profile, typer.Option(help="Decode profile of the cameras.")] = Profile.all,
        fps: Annotated[
            Optional[float],  # noqa: UP045
            typer.Option("--fps", help="At most so many detections a second and camera. Default: every frame."),
        ] = None,
        seconds: Annotated[
            float, typer.Option("--seconds", min=1, help="Measure this long, each turn (seconds).")
        ] = 10.0,
        frames: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--frames", min=1, help="Measure also until so many frames are detected."),
        ] = None,
        warmup: WarmUpOption = 2.0,
        rounds: Annotated[int, typer.Option("--rounds", min=1, max=20, help="Turns of pipeline and bare engine.")] = 2,
        as_json: JsonOption = False,
    ) -> None:
        """Sources through the whole live path to the alert channel, and the bare engine on the same cores, in turns.

        Prints their ratio, latency by stage, CPU time by process, and where every frame went. Files are read as fast as
        they are detected; with --live they are cameras.
        """
        with in_words():
            from services.bench import pipeline as command
            from services.bench.live import Window
            from services.model_names import model_file

            job = command.Job(
                model=str(model_file(model)),
                sources=source or [],
                count=sources,
                workers=workers,
                engine=name.value,
                cores=cores,
                cores_per_worker=cores_per_worker,
                square=square,
                live=live,
                profile=profile.value,
                fps=fps,
                window=Window(warmup, seconds, frames),
                rounds=rounds,
            )
            raise typer.Exit(command.bench_pipeline(job, as_json=as_json))

    @app.command()
    def plan(
        *,
        model: ModelOption,
        cameras: Annotated[int, typer.Option("--cameras", help="Cameras to run.")],
        fps: Annotated[float, typer.Option("--fps", help="Detections a second and camera.")],
        name: EngineOption = Engine.auto,
        width: Annotated[int, typer.Option("--width", help="The cameras' pictures (pixels).")] = 1920,
        height: Annotated[int, typer.Option("--height", help="The cameras' pictures (pixels).")] = 1080,
        source_fps: Annotated[float, typer.Option("--source-fps", help="Frames a second that a camera sends.")] = 25.0,
        keyframe_interval: Annotated[
            float, typer.Option("--keyframe-interval", help="Seconds between a camera's keyframes.")
        ] = 2.0,
        profile: Annotated[Profile, typer.Option(help="Decode profile of the cameras.")] = Profile.all,
        busy_share: Annotated[
            float, typer.Option("--busy-share", help="Share of the time in which something moves (adaptive; 0 to 1).")
        ] = 0.125,
        cores: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--cores", help="Plan with only so many physical cores. Default: all this process may use."),
        ] = None,
        seconds: Annotated[float, typer.Option("--seconds", min=0.2, help="Measure each point this long.")] = 2.0,
        as_json: JsonOption = False,
    ) -> None:
        """Whether this machine holds a load, with how many workers, and how many cameras it would hold.

        Measures the engine and the decoding here and shows the arithmetic. Exit code 1 when the load does not fit.
        """
        with in_words():
            from services.bench import plan_command as command
            from services.bench.decode_cost import Camera
            from services.bench.plan import Wish
            from services.model_names import model_file

            camera = Camera(width, height, source_fps, keyframe_interval)
            wish = Wish(cameras, fps, camera, profile.value, busy_share)
            job = command.Job(model_file(model), name.value, wish, cores, seconds)
            raise typer.Exit(command.plan(job, as_json=as_json))
