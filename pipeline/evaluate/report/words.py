"""How numbers and names are written for people: percent with one decimal, arrows for directions."""

from pipeline.evaluate.measures import Measure
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT

ARROWS = {IMAGE_RETRIEVAL: "text→image", TEXT_RETRIEVAL: "image→text"}


def percent(value: float) -> str:
    """Return a fraction as percent without the sign: 12.3."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of fractions in points: +1.2, −0.4."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def between(low: float, high: float) -> str:
    """Return an interval of fractions: 10.2 to 14.0."""
    return f"{percent(low)} to {percent(high)}".replace("-", "−")


def plus_minus(deviation: float | None) -> str:
    """Return a standard deviation over seeds, or nothing for one seed."""
    return "" if deviation is None else f"± {percent(deviation)}"


def direction_name(direction: str) -> str:
    """Return how a direction is called."""
    if direction in ARROWS:
        return ARROWS[direction]
    return f"zero-shot {direction.removeprefix(ZERO_SHOT).removeprefix(':')}".strip()


def measure_name(measure: Measure) -> str:
    """Return the heading of a measure's column."""
    name = direction_name(measure.direction)
    if measure.direction in ARROWS:
        return f"{name} R@{measure.k}"
    return f"{name} {'per-class' if measure.macro else f'acc@{measure.k}'}"
