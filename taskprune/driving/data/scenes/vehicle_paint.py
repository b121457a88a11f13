"""Paint vehicles: the face towards the camera, the side that shows, shadow and lamps.

A face is a small map of materials over two coordinates, made of simple regions, and a palette that
turns materials into albedo and emitted light.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from taskprune.driving.data.scenes.canvas import SCENERY, Canvas, Window
from taskprune.driving.data.scenes.geometry import View
from taskprune.driving.data.scenes.light import Light
from taskprune.driving.data.scenes.noise import Floats
from taskprune.driving.data.scenes.vehicles import Vehicle

NOTHING, BODY, GLASS, TYRE, TRIM, PLATE, LAMP, INDICATOR, RIM = range(9)

_BOOT = 0.16
"""Height of the underbody as a share of a car's height."""


def paint_vehicle(
    canvas: Canvas, view: View, vehicle: Vehicle, light: Light, *, number: int
) -> int:
    """Paint a vehicle and return how many pixels it would have if nothing hid it.

    Args:
        canvas: Painted on.
        view: Camera over the road.
        vehicle: What to paint.
        light: Illumination.
        number: Owner of the painted pixels, 1 or more.
    """
    _paint_shadow(canvas, view, vehicle, light)
    pixels = 0
    if vehicle.broadside:
        return _paint_broadside(canvas, view, vehicle, light, number)
    pixels += _paint_side(canvas, view, vehicle, light, number)
    pixels += _paint_face(canvas, view, vehicle, light, number)
    return pixels


def _palette(vehicle: Vehicle, light: Light) -> tuple[Floats, Floats]:
    """Return albedo and emission of the materials, each ``[3, 9]``."""
    paint = vehicle.paint
    lamp = (0.85, 0.85, 0.80) if vehicle.front else (0.45, 0.03, 0.03)
    dark_glass = (0.07, 0.08, 0.10)
    albedo = np.array(
        (
            (0.0, 0.0, 0.0),
            paint,
            dark_glass,
            (0.035, 0.035, 0.035),
            (0.10, 0.10, 0.10),
            (0.80, 0.80, 0.72),
            lamp,
            (0.70, 0.35, 0.05),
            (0.45, 0.45, 0.47),
        ),
        np.float32,
    ).T
    emission = np.zeros((3, 9), np.float32)
    # Glass mirrors some sky.
    emission[:, GLASS] = 0.16 * light.skyline
    if vehicle.lit:
        emission[:, LAMP] = (1.3, 1.25, 1.1) if vehicle.front else (0.9, 0.06, 0.04)
        emission[:, PLATE] = 0.0 if vehicle.front else 0.25
    return albedo, emission


def _put(
    window: Window,
    material: NDArray[np.uint8],
    shade: Floats | float,
    vehicle: Vehicle,
    light: Light,
    *,
    depth: float,
    number: int,
) -> int:
    albedo, emission = _palette(vehicle, light)
    lit = light.shade(albedo, np.float32(depth))  # [3, 9]
    unlit = light.shade(np.zeros_like(albedo), np.float32(depth))  # the air alone
    glow = emission * light.clarity(np.float32(depth))
    colour = np.take(lit - unlit, material, axis=1) * shade + np.take(
        unlit + glow, material, axis=1
    )
    mask = material > NOTHING
    window.paint(colour.astype(np.float32), mask, depth=depth, owner=number)
    return int(np.count_nonzero(mask))


def _paint_face(canvas: Canvas, view: View, vehicle: Vehicle, light: Light, number: int) -> int:
    z = vehicle.z
    half = vehicle.width / 2
    rows = (float(view.row(z, vehicle.y + vehicle.height)), float(view.row(z, vehicle.y)))
    columns = (float(view.column(z, vehicle.x - half)), float(view.column(z, vehicle.x + half)))
    window = canvas.window(rows, columns)
    if window is None:
        return 0
    across = np.abs(2 * (window.u - columns[0]) / (columns[1] - columns[0]) - 1)[None]
    up = (rows[1] - window.v) / (rows[1] - rows[0])
    material = _front_or_rear(across.astype(np.float32), up.astype(np.float32), vehicle)
    shade = (0.82 + 0.3 * up).astype(np.float32)
    return _put(window, material, shade, vehicle, light, depth=z, number=number)


def _front_or_rear(p: Floats, q: Floats, vehicle: Vehicle) -> NDArray[np.uint8]:
    """Return materials over ``p`` (0 middle to 1 side) and ``q`` (0 ground to 1 roof)."""
    body = vehicle.body
    boxy = body.kind in ("lorry", "bus")
    # Half width over height: upright to the shoulder, then leaning in, corners rounded.
    lean = np.clip((q - body.shoulder) / (1 - body.shoulder), 0, 1)
    width = 1 - (1 - body.taper) * lean - 0.10 * np.clip((q - 0.93) / 0.07, 0, 1) ** 2
    boot = _BOOT * 1.5 / vehicle.height
    inside = (p <= width) & (q <= 1)
    material = np.where(inside & (q >= boot), BODY, NOTHING).astype(np.uint8)
    material[(q >= 0) & (q < 2.2 * boot) & (p > 0.62) & (p < 0.94)] = TYRE
    material[(q >= 0.45 * boot) & (q < boot) & (p <= 0.62)] = TRIM
    if boxy and not vehicle.front and body.kind == "lorry":
        material[inside & (p < 0.03) & (q > 0.25)] = TRIM  # the gap between two doors
        material[inside & (q > 0.2) & (q < 0.24)] = TRIM
        material[inside & (p > 0.72) & (p < 0.92) & (q > 0.15) & (q < 0.2)] = LAMP
        return material
    low, high = (0.45, 0.86) if boxy else (body.shoulder + 0.03, 0.92)
    glass = (q > low) & (q < high) & (p < width - 0.10) & inside
    if body.kind == "van" and not vehicle.front:
        glass &= p > 0.08
    material[glass] = GLASS
    if vehicle.front:
        lamp = (q > 0.34 * _low(boxy)) & (q < 0.47 * _low(boxy)) & (p > 0.62) & (p < 0.95)
        material[(q > 0.24 * _low(boxy)) & (q < 0.42 * _low(boxy)) & (p < 0.5)] = TRIM  # the grille
    else:
        lamp = (q > 0.40 * _low(boxy)) & (q < 0.54 * _low(boxy)) & (p > 0.70) & (p <= 0.97)
        material[(q > boot) & (q < 1.7 * boot) & inside & (p < 0.9)] = TRIM  # the bumper
    material[lamp] = LAMP
    material[(q > 0.25 * _low(boxy)) & (q < 0.35 * _low(boxy)) & (p < 0.22)] = PLATE
    return material


def _low(boxy: bool) -> float:
    """Lamps and plates of tall vehicles sit lower on the face."""
    return 0.6 if boxy else 1.0


def _paint_side(canvas: Canvas, view: View, vehicle: Vehicle, light: Light, number: int) -> int:
    """Paint the long side that the camera sees, from the face at ``z`` to the far end."""
    z, yaw, half = vehicle.z, vehicle.yaw, vehicle.width / 2
    # A side is a plane x = x0 + yaw * z; the camera is at the origin.
    left, right = vehicle.x - half - yaw * z, vehicle.x + half - yaw * z
    if left > 0.05:
        x0 = left
    elif right < -0.05:
        x0 = right
    else:
        return 0
    end = z + vehicle.length
    # The cabin leans in: the upper part of the side lies farther off the line of sight.
    lean = (1 - vehicle.body.taper) * half * np.sign(x0)
    borders = [
        float(view.column(d, x0 + x + yaw * d)) for d, x in ((z, 0.0), (z, lean), (end, 0.0))
    ]
    heads = [float(view.row(d, vehicle.y + vehicle.height)) for d in (z, end)]
    feet = [float(view.row(d, vehicle.y)) for d in (z, end)]
    window = canvas.window((min(heads), max(feet)), (min(borders), max(borders)))
    if window is None:
        return 0
    ray = (window.u - view.width / 2) / view.focal - yaw
    ray = np.where(np.abs(ray) < 1e-4, 1e-4, ray)[None]
    depth = x0 / ray
    up = _height_above(view, window, depth, vehicle.y)
    shoulder = vehicle.body.shoulder
    depth = depth + lean / ray * np.clip((up / vehicle.height - shoulder) / (1 - shoulder), 0, 1)
    up = _height_above(view, window, depth, vehicle.y)
    along = ((depth - z) / vehicle.length).astype(np.float32)
    material = _side(along, up, vehicle)
    material[(along < 0) | (along > 1)] = NOTHING
    shade = (0.62 + 0.12 * up / vehicle.height).astype(np.float32)
    # One depth for the whole side keeps it behind the face and in front of what stands farther.
    return _put(window, material, shade, vehicle, light, depth=z + 0.4, number=number)


def _height_above(view: View, window: Window, depth: Floats, ground: float) -> Floats:
    """Return metres above the ground of pixels that show something at ``depth``."""
    foot = view.row(depth, ground)
    return np.asarray((foot - window.v) * depth / view.focal, dtype=np.float32)


def _side(t: Floats, up: Floats, vehicle: Vehicle) -> NDArray[np.uint8]:
    """Return materials over ``t`` (0 near end to 1 far end) and metres above the ground."""
    body, height, length = vehicle.body, vehicle.height, vehicle.length
    forward = t if not vehicle.front else 1 - t  # 0 rear bumper to 1 front bumper
    bonnet, boot = body.hood
    windscreen, rear_screen = (max(share, 1e-3) for share in body.screens)
    cabin = np.minimum((forward - boot) / rear_screen, (1 - bonnet - forward) / windscreen)
    if (
        not vehicle.broadside
    ):  # the face at the near end is drawn upright, so the side joins it there
        cabin = np.where(t < 0.4, 1, cabin)
    top = height * (body.shoulder + (1 - body.shoulder) * np.clip(cabin, 0, 1))
    floor = 0.24 if height < 2.6 else 0.45
    material = np.where((up >= floor) & (up <= top), BODY, NOTHING).astype(np.uint8)
    low, high = height * (body.shoulder + 0.04), top - 0.07 * height
    glass = (up > low) & (up < high) & (cabin > 0.25)
    if body.kind == "lorry":
        glass &= forward > 0.85
    elif body.kind == "van":
        glass &= forward > 0.62
    else:
        glass &= np.mod(forward, 0.30 if body.kind != "bus" else 0.11) > 0.025
    material[glass] = GLASS
    if body.kind == "lorry":
        material[(forward > 0.79) & (forward < 0.81) & (up >= floor)] = TRIM
    radius = 0.33 if height < 2.6 else 0.5
    for axle in (0.17, 0.81):
        distance = ((forward - axle) * length) ** 2 + (up - radius) ** 2
        material[(distance < radius**2) & (up >= 0)] = TYRE
        material[distance < (0.55 * radius) ** 2] = RIM
    return material


def _paint_broadside(
    canvas: Canvas, view: View, vehicle: Vehicle, light: Light, number: int
) -> int:
    z, half = vehicle.z, vehicle.length / 2
    rows = (float(view.row(z, vehicle.y + vehicle.height)), float(view.row(z, vehicle.y)))
    columns = (float(view.column(z, vehicle.x - half)), float(view.column(z, vehicle.x + half)))
    window = canvas.window(rows, columns)
    if window is None:
        return 0
    along = ((window.u - columns[0]) / (columns[1] - columns[0])).astype(np.float32)[None]
    up = ((rows[1] - window.v) * (z / view.focal)).astype(np.float32)
    material = _side(along, up, vehicle)
    shade = (0.80 + 0.2 * up / vehicle.height).astype(np.float32)
    return _put(window, material, shade, vehicle, light, depth=z, number=number)


def _paint_shadow(canvas: Canvas, view: View, vehicle: Vehicle, light: Light) -> None:
    """Darken the ground under and beside a vehicle."""
    z, end = vehicle.z - 0.35, vehicle.z + vehicle.length
    half = vehicle.width / 2 + 0.1
    if vehicle.broadside:
        end, half = vehicle.z + vehicle.width, vehicle.length / 2
    reach = half + (0.6 if light.sunny else 0.15)
    columns = (float(view.column(z, vehicle.x - reach)), float(view.column(z, vehicle.x + reach)))
    rows = (float(view.row(end, vehicle.y)), float(view.row(z, vehicle.y)))
    window = canvas.window(rows, columns)
    if window is None or window.rows.stop <= view.top:
        return
    top = max(window.rows.start, view.top)
    window = Window(canvas, slice(top, window.rows.stop), window.columns)
    depth = view.distance[top - view.top : window.rows.stop - view.top, None]
    centre = vehicle.x + vehicle.yaw * (depth - vehicle.z)
    x = (window.u - view.width / 2) * depth / view.focal - centre
    edge = (half + (reach - half) * (x > 0) - np.abs(x)) / 0.2
    strength = 0.65 * np.clip(edge, 0, 1) * ((depth > z) & (depth < end))
    strength = strength * (canvas.owner[window.area] == SCENERY)
    canvas.colour[window.planes] *= (1 - strength).astype(np.float32)


def paint_lamp_glow(canvas: Canvas, view: View, vehicle: Vehicle, light: Light) -> None:
    """Add the halo of burning lamps over everything already painted."""
    if not vehicle.lit or vehicle.broadside:
        return
    height = 0.45 * min(vehicle.height, 1.6)
    size = (0.9 if vehicle.front else 0.5) * (0.6 + 14 * light.extinction)
    colour = np.array((1.0, 0.95, 0.8) if vehicle.front else (0.9, 0.1, 0.05), np.float32)
    row = float(view.row(vehicle.z, vehicle.y + height))
    radius = max(3.0 * view.width / 320, size * view.focal / vehicle.z)
    for side in (-0.4, 0.4):
        column = float(view.column(vehicle.z, vehicle.x + side * vehicle.width))
        window = canvas.window((row - radius, row + radius), (column - radius, column + radius))
        if window is None:
            continue
        middle_row = min(max(int(row), 0), canvas.depth.shape[0] - 1)
        middle = (middle_row, min(max(int(column), 0), canvas.depth.shape[1] - 1))
        if canvas.depth[middle] < vehicle.z - 0.6:
            continue  # the lamp itself is hidden
        distance = ((window.v - row) ** 2 + (window.u - column) ** 2) / radius**2
        halo = (np.clip(1 - distance, 0, 1) ** 3 * 0.8 * light.lamps).astype(np.float32)
        canvas.colour[window.planes] += colour[:, None, None] * halo
