"""Pictures of a toy: an animation, and a still of start, middle and end. Colours mean the same in all of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor, ImageSequence

from driftkit.errors import ArtifactError, NotFoundError
from driftkit.runtime.drawing import GRID, INK, PALETTES
from driftkit.tutorial.toy_config import ToyConfig
from driftkit.tutorial.toy_training import ToyFrame, TrainedToy

REAL, GENERATED = PALETTES["light"][:2]
ARROW = INK["light"]
SMALL, NORMAL, LARGE = 8.0, 9.0, 11.5
INCHES = (4.0, 4.9)  # of the animation, at 100 dots per inch
ANIMATION_DPI, STILL_DPI = 100, 160
SIDE = 2.5  # half of the square that is always shown
ARROWS = 48
LONGEST = 1.1  # of the arrows, in the units of the points
FRAME_MS, LAST_FRAME_MS = 110, 2500
COLUMNS, CELL = 4, 62  # toys side by side, and their dots per inch
MAX_SIDE, MAX_FRAMES, MAX_PIXELS = 2000, 500, 2**27  # of an animation that is read; pixels of all its pictures
STARTS = {"middle": "from the middle", "far": "from far away", "collapsed": "from one point"}


def toy_animation(config: ToyConfig, trained: TrainedToy) -> bytes:
    """A GIF that loops: points and field above, the drift norm so far below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=ANIMATION_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.02, 0.972, _words(config), fontsize=LARGE, weight="bold", color=ARROW, va="center")
    numbers = figure.text(0.02, 0.93, "", fontsize=NORMAL, color=ARROW, va="center")
    _key(figure, 0.98, 0.93)
    gain = _gain(trained.frames)
    axes = figure.add_axes((0.02, 0.16, 0.96, 0.96 * INCHES[0] / INCHES[1] * 0.95))
    points, arrows = _draw_points(axes, trained.frames[0], _limits(trained.frames), gain)
    line = _draw_norm(figure.add_axes((0.115, 0.05, 0.865, 0.085)), trained)
    images = []
    for frame in trained.frames:
        points.set_offsets(frame.generated.numpy())
        arrows.set_offsets(frame.generated[:ARROWS].numpy())
        arrows.set_UVC(*(frame.v[:ARROWS] * gain).T.numpy())
        line.set_data(range(frame.step), trained.drift_norm[: frame.step])
        norm = trained.drift_norm[min(frame.step, config.steps - 1)]
        numbers.set_text(f"step {frame.step}  ·  drift norm {norm:.3f}")
        canvas.draw()
        picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
        images.append(picture.convert("RGB"))
    return encode_gif(images)


def toy_still(config: ToyConfig, trained: TrainedToy) -> bytes:
    """A PNG of three moments, and the drift norm of all steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.7), facecolor="white")
    FigureCanvasAgg(figure)
    limits, gain = _limits(trained.frames), _gain(trained.frames)
    for place, frame in enumerate(_moments(trained.frames)):
        axes = figure.add_axes((0.012 + 0.3295 * place, 0.235, 0.317, 0.648))
        _draw_points(axes, frame, limits, gain)
        floor = f" (real {trained.scores.energy_distance_floor:.3f})" if place == 2 else ""
        title = f"step {frame.step}  ·  distance {frame.energy_distance:.3f}{floor}"
        axes.set_title(title, fontsize=NORMAL, color=ARROW, loc="left", pad=4)
    strip = figure.add_axes((0.05, 0.065, 0.938, 0.125))
    _draw_norm(strip, trained)
    figure.text(0.012, 0.965, _words(config), fontsize=LARGE, weight="bold", color=ARROW, va="center")
    _key(figure, 0.988, 0.965)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=STILL_DPI)
    return memory.getvalue()


def encode_gif(images: Sequence[Image.Image]) -> bytes:
    """A looping GIF in the colours that pictures of toys are made of, the last picture shown longest."""
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in _colours() for channel in colour])
    pictures = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    memory = io.BytesIO()
    pictures[0].save(memory, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return memory.getvalue()


def _colours() -> list[tuple[int, ...]]:
    """White, and every colour in several strengths over white and over those that lie below it."""
    white, real, generated, ink, grid = (ImageColor.getrgb(c) for c in ("white", REAL, GENERATED, ARROW, GRID["light"]))

    def over(below: tuple[int, ...], above: tuple[int, ...], steps: int) -> list[tuple[int, ...]]:
        shares = [step / steps for step in range(1, steps + 1)]
        return [tuple(round(b + s * (a - b)) for a, b in zip(above, below, strict=True)) for s in shares]

    pairs = [(white, real, 8), (white, generated, 8), (white, ink, 8), (white, grid, 2),
             (real, generated, 4), (generated, ink, 4), (real, ink, 4)]  # fmt: skip
    return [white, *(colour for pair in pairs for colour in over(*pair))]


def _words(config: ToyConfig) -> str:
    name = config.points.replace("-", " ")
    return f"{name}, {config.factors}" if config.factors else f"{name}, {STARTS[config.start]}"


def _key(figure: Any, right: float, height: float) -> None:
    """What the colours mean, right-aligned."""
    inches = figure.get_figwidth()
    for word, colour, offset in (("V →", ARROW, 0.0), ("generated", GENERATED, 0.3), ("real", REAL, 1.02)):
        figure.text(right - offset / inches, height, word, fontsize=NORMAL, color=colour, ha="right", va="center")


def _moments(frames: Sequence[ToyFrame]) -> list[ToyFrame]:
    """Start, the picture nearest to an eighth of training, and end."""
    last = frames[-1].step
    return [frames[0], min(frames, key=lambda frame: abs(frame.step - last / 8)), frames[-1]]


def _limits(frames: Sequence[ToyFrame]) -> tuple[float, float]:
    """Both axes' range: the data, and where 99 in 100 generated points begin and end."""
    points = torch.cat([frames[0].generated, frames[-1].generated])
    low, high = float(points.quantile(0.005)), float(points.quantile(0.995))
    return min(-SIDE, low - 0.3), max(SIDE, high + 0.3)


def _gain(frames: Sequence[ToyFrame]) -> float:
    """Length of arrows over that of V, the same in all pictures, so that arrows shrink as V does."""
    longest = max(float(frame.v.norm(dim=1).quantile(0.9)) for frame in frames)
    return LONGEST / longest if longest > 0 else 1.0


def _draw_points(axes: Any, frame: ToyFrame, limits: tuple[float, float], gain: float) -> tuple[Any, Any]:
    """Both sets of points, and arrows; returns the generated points and their arrows, which move."""
    axes.scatter(*frame.real.T.numpy(), s=11, color=REAL, alpha=0.4, linewidths=0)
    points = axes.scatter(*frame.generated.T.numpy(), s=9, color=GENERATED, alpha=0.8, linewidths=0)
    x, v = frame.generated[:ARROWS], frame.v[:ARROWS] * gain
    arrows = axes.quiver(
        *x.T.numpy(), *v.T.numpy(), color=ARROW, angles="xy", scale_units="xy", scale=1, width=0.0045,
        headwidth=4.5, headlength=5, headaxislength=4.5,
    )  # fmt: skip
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(GRID["light"])
    return points, arrows


def _draw_norm(axes: Any, trained: TrainedToy) -> Any:
    """The drift norm, above what real points have against others; returns its line, which grows."""
    norms, floor = trained.drift_norm, trained.scores.drift_norm_floor
    axes.axhline(floor, color=REAL, linewidth=1, linestyle=(0, (1, 2)))
    (line,) = axes.plot(norms, color=GENERATED, linewidth=1.4)
    axes.set_xlim(0, len(norms))
    axes.set_ylim(0, 1.08 * max(*norms, floor))
    axes.set_yticks([max(norms)], [f"{max(norms):.2g}"])
    axes.set_xticks([0, len(norms)], ["0", f"{len(norms)} steps"])
    axes.xaxis.get_majorticklabels()[-1].set_horizontalalignment("right")
    at_right = {"fontsize": SMALL, "ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(1, 1, "drift norm", color=GENERATED, **at_right)
    axes.text(0.8, 1, "real against real", color=REAL, **at_right)
    axes.tick_params(length=0, labelsize=SMALL, colors=ARROW, pad=2)
    for name, side in axes.spines.items():
        side.set_visible(name == "bottom")
        side.set_color(GRID["light"])
    return line


def side_by_side(animations: Sequence[Path], *, frames: int) -> bytes:
    """One GIF of several, four to a row, with that many pictures, the first and the last of each among them.

    Raises:
        ArtifactError: a file that is absent or no animation.
    """
    width, height = (round(CELL * size) for size in INCHES)
    shown = [_read_frames(path, frames, (width, height)) for path in animations]
    columns = min(COLUMNS, len(shown))
    images = []
    for number in range(frames):
        image = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), "white")
        for place, pictures in enumerate(shown):
            image.paste(pictures[number], (place % columns * width, place // columns * height))
        images.append(image)
    return encode_gif(images)


def _read_frames(path: Path, frames: int, size: tuple[int, int]) -> list[Image.Image]:
    """That many pictures of an animation, evenly over it, each resized as soon as it is read."""
    try:
        with Image.open(path, formats=("GIF",)) as opened:
            count = int(getattr(opened, "n_frames", 1))
            wanted = [round(number * (count - 1) / (frames - 1)) for number in range(frames)]
            pictures = {}
            for number, frame in enumerate(ImageSequence.Iterator(opened)):  # a picture may enlarge those that follow
                if max(frame.size) > MAX_SIDE or count > MAX_FRAMES or frame.width * frame.height * count > MAX_PIXELS:
                    raise ArtifactError(f"{path}: {frame.width}x{frame.height} pixels, {count} pictures: no toy")
                if number in wanted:
                    pictures[number] = frame.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            return [pictures[number] for number in wanted]
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there; make the toy again") from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, Image.DecompressionBombError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: no whole animation: {error}; make the toy again") from None
