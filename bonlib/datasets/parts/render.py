"""A small renderer of triangles: the same image, bit for bit, for the same numbers on any machine.

Only additions, products, quotients and square roots, in a fixed order, which IEEE 754 rounds in one way; no powers, no
angles. Views are drawn so that a part is seen as in a catalogue: upright, from within a cap around its axis.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.core.permutation import compiled

OWN = np.array([255, 0, 255], dtype=np.float32)  # a part's own colour where looks are compared: no pattern has it
LOOK = 32  # side of a look, pixels
_AXES = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)]
DIRECTIONS = np.array(_AXES, dtype=np.float64) / np.sqrt((np.array(_AXES) ** 2).sum(axis=1, keepdims=True))  # (26, 3)
_CAP = 0.7660444431189780  # cosine of 40 degrees: how far a view may be from a part's axis
_ROLL = 0.3639702342662024  # tangent of 20 degrees
_STUDIO = np.array([-0.4, 0.7, 0.6], dtype=np.float32) / np.float32(np.sqrt(1.01))


class Looks(NamedTuple):
    """A part from 26 directions in studio light."""

    images: NDArray[np.uint8]  # (26, 32, 32, 3)
    covered: NDArray[np.int64]  # (26,) pixels
    own: NDArray[np.int64]  # (26,) pixels in the part's own colour
    pattern_edges: NDArray[np.int64]  # (26,) pairs of neighbours that differ in colour
    shading_edges: NDArray[np.int64]  # (26,) pairs of one colour that differ in light


def take_looks(triangles: NDArray[np.float32], colours: NDArray[np.float32], up: NDArray[np.float64]) -> Looks:
    """Look at a part from all sides.

    Args:
        triangles: ``(n, 3, 3)`` corners, as :func:`centred` gives them.
        colours: ``(n, 3)`` 0 to 255; negative where it is the part's own.
        up: ``(3,)`` unit vector.
    """
    frames = np.stack([_frame(direction, up, 0.0) for direction in DIRECTIONS])  # (26, 3, 3)
    shown = np.where(colours[:, :1] < 0, OWN, colours).astype(np.float32)
    images = np.zeros((len(DIRECTIONS), LOOK, LOOK, 3), dtype=np.uint8)
    counts = np.zeros((4, len(DIRECTIONS)), dtype=np.int64)
    _look(triangles, shown, (colours[:, 0] < 0).astype(np.uint8), frames, _STUDIO, images, counts)
    return Looks(images, *counts)


def best_axis(looks: Looks, up: NDArray[np.float64]) -> int:
    """The direction that shows most of a part: most pattern, or of a plain part, from above, most edges by extent."""
    if looks.pattern_edges.max() > 0:
        return int(looks.pattern_edges.argmax())
    above = DIRECTIONS @ up > 0.1
    return int(np.where(above, looks.shading_edges * looks.covered, -1).argmax())


def render(
    triangles: NDArray[np.float32],
    colours: NDArray[np.float32],
    axis: NDArray[np.float64],
    up: NDArray[np.float64],
    size: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """One picture of a part on soft ground, from a random view near its axis, in random light.

    Args:
        triangles: ``(n, 3, 3)`` corners, as :func:`centred` gives them.
        colours: ``(n, 3)`` 0 to 255.
        axis: ``(3,)`` unit vector from the part to the middle of the cap that views are drawn from.
        up: ``(3,)`` unit vector.
        size: side of the image, pixels.
        rng: all chance comes from here.

    Returns:
        ``(3, size, size)``.
    """
    height = _CAP + (1 - _CAP) * rng.random()  # uniform on the cap
    side = _in_disc(rng) * np.sqrt(1 - height * height)
    right, upward, _ = _frame(axis, up, 0.0)
    frame = _frame(height * axis + side[0] * right + side[1] * upward, up, _ROLL * rng.uniform(-1, 1))
    distance, fill, shift = rng.uniform(3, 6), rng.uniform(0.7, 0.95), rng.uniform(-0.05, 0.05, 2)
    key = np.array([*(0.8 * _in_disc(rng)), 0.0])
    key[1] += 0.5
    key[2] = 0.9
    key /= np.sqrt((key * key).sum())
    ground = rng.uniform(90, 235) + rng.uniform(-30, 30, (2, 3))  # at the top and at the bottom
    gain = rng.uniform(0.85, 1.1) * rng.uniform(0.96, 1.04, 3)
    noise = (rng.random((size, size, 3), dtype=np.float32) + rng.random((size, size, 3), dtype=np.float32) - 1) * 9
    image = np.empty((3, size, size), dtype=np.uint8)
    floats = [np.ascontiguousarray(values, dtype=np.float32) for values in (frame, key, ground, gain)]
    _picture(
        triangles, np.ascontiguousarray(colours, dtype=np.float32), floats[0],
        (np.float32(distance), np.float32(fill), np.float32(shift[0]), np.float32(shift[1])),
        floats[1], floats[2], floats[3], noise, image,
    )  # fmt: skip
    return image


def centred(triangles: NDArray[np.float64]) -> NDArray[np.float32]:
    """Around the middle of the bounding box, in a sphere of radius one: ``(n, 3, 3)``."""
    corners = triangles.reshape(-1, 3)
    moved = triangles - (corners.min(axis=0) + corners.max(axis=0)) / 2
    radius = np.sqrt((moved * moved).sum(axis=2).max())
    return np.ascontiguousarray(moved / max(radius, 1e-12), dtype=np.float32)


def _frame(toward: NDArray[np.float64], up: NDArray[np.float64], roll: float) -> NDArray[np.float64]:
    """Right, upward and toward the viewer as rows ``(3, 3)``; ``roll`` is the tangent of the camera's tilt."""
    if abs(toward @ up) > 0.99:  # from right above, any way is up
        up = np.roll(up, 1)
    right = _unit(_cross(up, toward))
    upward = _cross(toward, right)
    return np.stack([_unit(right + roll * upward), _unit(upward - roll * right), toward])


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.sqrt((vector * vector).sum())


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _in_disc(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random direction in the plane, by rejection, which needs no angle."""
    while True:
        point = rng.uniform(-1, 1, 2)
        length = np.sqrt((point * point).sum())
        if 0.01 < length <= 1:
            return point / length


_without_lock = partial(compiled, nogil=True, error_model="numpy")


@_without_lock
def _project(triangles, frame, distance, screen, bounds):  # pragma: no cover
    """Corners on the plane of the image, before it is scaled, with one over their depth; and their bounds."""
    bounds[0], bounds[1], bounds[2], bounds[3] = 1e9, -1e9, 1e9, -1e9
    for i in range(len(triangles)):
        for k in range(3):
            x, y, z = triangles[i, k, 0], triangles[i, k, 1], triangles[i, k, 2]
            depth = np.float32(1) / (distance - (x * frame[2, 0] + y * frame[2, 1] + z * frame[2, 2]))
            u = (x * frame[0, 0] + y * frame[0, 1] + z * frame[0, 2]) * depth
            v = (x * frame[1, 0] + y * frame[1, 1] + z * frame[1, 2]) * depth
            screen[i, k, 0], screen[i, k, 1], screen[i, k, 2] = u, v, depth
            bounds[0], bounds[1] = min(bounds[0], u), max(bounds[1], u)
            bounds[2], bounds[3] = min(bounds[2], v), max(bounds[3], v)


@_without_lock
def _rasterise(screen, scale, middle_u, middle_v, nearest, which):  # pragma: no cover
    """The nearest triangle of each pixel, -1 where there is none; rows from the top."""
    size = len(which)
    half = np.float32(size) / np.float32(2)
    which[:] = -1
    nearest[:] = np.float32(0)
    for i in range(len(screen)):
        x0, y0 = (screen[i, 0, 0] - middle_u) * scale + half, half - (screen[i, 0, 1] - middle_v) * scale
        x1, y1 = (screen[i, 1, 0] - middle_u) * scale + half, half - (screen[i, 1, 1] - middle_v) * scale
        x2, y2 = (screen[i, 2, 0] - middle_u) * scale + half, half - (screen[i, 2, 1] - middle_v) * scale
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < np.float32(1e-7):
            continue
        left, right = max(int(min(x0, x1, x2)), 0), min(int(max(x0, x1, x2)) + 1, size)
        top, bottom = max(int(min(y0, y1, y2)), 0), min(int(max(y0, y1, y2)) + 1, size)
        for row in range(top, bottom):
            y = np.float32(row) + np.float32(0.5)
            for column in range(left, right):
                x = np.float32(column) + np.float32(0.5)
                a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
                b = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
                c = np.float32(1) - a - b
                if a >= 0 and b >= 0 and c >= 0:
                    depth = a * screen[i, 0, 2] + b * screen[i, 1, 2] + c * screen[i, 2, 2]
                    if depth > nearest[row, column]:
                        nearest[row, column] = depth
                        which[row, column] = i


@_without_lock
def _normal(triangle, frame, distance, out):  # pragma: no cover
    """The unit normal in the camera's frame, turned toward the camera: winding can't be trusted."""
    ax, ay, az = triangle[1, 0] - triangle[0, 0], triangle[1, 1] - triangle[0, 1], triangle[1, 2] - triangle[0, 2]
    bx, by, bz = triangle[2, 0] - triangle[0, 0], triangle[2, 1] - triangle[0, 1], triangle[2, 2] - triangle[0, 2]
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-20)
    facing = np.float32(0)
    for k in range(3):
        out[k] = (frame[k, 0] * nx + frame[k, 1] * ny + frame[k, 2] * nz) / length
        at = frame[k, 0] * triangle[0, 0] + frame[k, 1] * triangle[0, 1] + frame[k, 2] * triangle[0, 2]
        facing += out[k] * ((distance if k == 2 else np.float32(0)) - at)
    if facing < 0:
        for k in range(3):
            out[k] = -out[k]


@_without_lock
def _look(triangles, colours, own, frames, key, images, counts):  # pragma: no cover
    """Fill ``images`` and ``counts`` (covered, own, pattern edges, shading edges) for each of the frames."""
    distance, size = np.float32(6), images.shape[1]
    screen = np.empty((len(triangles), 3, 3), dtype=np.float32)
    bounds, normal = np.empty(4, dtype=np.float32), np.empty(3, dtype=np.float32)
    nearest, which = np.empty((size, size), dtype=np.float32), np.empty((size, size), dtype=np.int32)
    light = np.empty((size, size), dtype=np.float32)
    scale = np.float32(size) / np.float32(2) * np.float32(5.9)  # the sphere of radius one fills the frame
    for d in range(len(frames)):
        frame = frames[d].astype(np.float32)
        _project(triangles, frame, distance, screen, bounds)
        _rasterise(screen, scale, np.float32(0), np.float32(0), nearest, which)
        for r in range(size):
            for c in range(size):
                t = which[r, c]
                if t < 0:
                    continue
                _normal(triangles[t], frame, distance, normal)
                lit = max(normal[0] * key[0] + normal[1] * key[1] + normal[2] * key[2], np.float32(0))
                light[r, c] = np.float32(0.35) + np.float32(0.65) * lit
                for k in range(3):
                    images[d, r, c, k] = np.uint8(min(colours[t, k] * light[r, c], np.float32(255)))
                counts[0, d] += 1
                counts[1, d] += own[t]
        for r in range(size - 1):
            for c in range(size - 1):
                if which[r, c] < 0:
                    continue
                for other in (which[r + 1, c], which[r, c + 1]):
                    if other < 0:
                        continue
                    t = which[r, c]
                    apart = np.float32(0)
                    for k in range(3):
                        apart += abs(colours[t, k] - colours[other, k])
                    if apart > 30:
                        counts[2, d] += 1
                if which[r + 1, c] >= 0 and abs(light[r, c] - light[r + 1, c]) > np.float32(0.08):
                    counts[3, d] += 1
                if which[r, c + 1] >= 0 and abs(light[r, c] - light[r, c + 1]) > np.float32(0.08):
                    counts[3, d] += 1


@_without_lock
def _picture(triangles, colours, frame, view, key, ground, gain, noise, image):  # pragma: no cover
    """Draw one picture at twice its size, light it, average, add gain and noise."""
    distance, fill, shift_u, shift_v = view
    size = image.shape[1]
    fine = 2 * size
    screen = np.empty((len(triangles), 3, 3), dtype=np.float32)
    bounds, normal = np.empty(4, dtype=np.float32), np.empty(3, dtype=np.float32)
    nearest, which = np.empty((fine, fine), dtype=np.float32), np.empty((fine, fine), dtype=np.int32)
    _project(triangles, frame, distance, screen, bounds)
    extent = max(bounds[1] - bounds[0], bounds[3] - bounds[2], np.float32(1e-6))
    scale = fill * np.float32(fine) / extent
    half = np.float32(0.5)
    middle_u = (bounds[0] + bounds[1]) * half - shift_u * np.float32(fine) / scale
    middle_v = (bounds[2] + bounds[3]) * half - shift_v * np.float32(fine) / scale
    _rasterise(screen, scale, middle_u, middle_v, nearest, which)
    halfway = np.empty(3, dtype=np.float32)  # between light and viewer, for the gloss
    length = np.sqrt(key[0] * key[0] + key[1] * key[1] + (key[2] + 1) * (key[2] + 1))
    halfway[0], halfway[1], halfway[2] = key[0] / length, key[1] / length, (key[2] + 1) / length
    sums = np.zeros((size, size, 3), dtype=np.float32)
    for r in range(fine):
        down = np.float32(r) / np.float32(fine)
        for c in range(fine):
            t = which[r, c]
            if t < 0:
                for k in range(3):
                    sums[r // 2, c // 2, k] += ground[0, k] + (ground[1, k] - ground[0, k]) * down
                continue
            _normal(triangles[t], frame, distance, normal)
            lit = max(normal[0] * key[0] + normal[1] * key[1] + normal[2] * key[2], np.float32(0))
            light = np.float32(0.3) + np.float32(0.12) * (normal[1] + 1) + np.float32(0.55) * lit
            gloss = max(normal[0] * halfway[0] + normal[1] * halfway[1] + normal[2] * halfway[2], np.float32(0))
            for _ in range(5):
                gloss *= gloss
            for k in range(3):
                sums[r // 2, c // 2, k] += colours[t, k] * light + np.float32(60) * gloss
    for r in range(size):
        for c in range(size):
            for k in range(3):
                value = sums[r, c, k] * np.float32(0.25) * gain[k] + noise[r, c, k]
                image[k, r, c] = np.uint8(min(max(value + half, np.float32(0)), np.float32(255)))


@compiled
def same_looks(a, b, directions, most, levels):  # pragma: no cover
    """Whether two looks ``(26, 32, 32, 3)`` differ in each direction in at most so many pixels by more ``levels``."""
    for d in directions:
        apart = 0
        for r in range(a.shape[1]):
            for c in range(a.shape[2]):
                for k in range(3):
                    if abs(np.int64(a[d, r, c, k]) - np.int64(b[d, r, c, k])) > levels:
                        apart += 1
                        break
        if apart > most:
            return False
    return True
