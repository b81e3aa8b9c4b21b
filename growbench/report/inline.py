"""From a matplotlib figure to SVG that stands in a page: real text, the page's colours, methods by name, few bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from xml.etree import ElementTree

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from growbench.report.looks import VARIABLE_OF

METHOD = "method:"  # what begins the gid of an artist that stands for a method
FONT_SIZE = 9.5  # points, of text that says nothing else
XLINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = {"font-family", "stroke-dashoffset", "stroke-linejoin", "target", "id", "style", "transform", "version"}
GROUND = "patch_1"  # of the whole figure
PLACES = {"x", "y", "width", "height"}
DEFAULTS = {
    "text-anchor": ("start",),
    "stroke-linecap": ("butt", "square"),
    "font-size": (f"{FONT_SIZE}px",),
    "stroke-width": ("1",),
}
NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Drawn:
    """A figure's SVG without its outermost tag: size in points, and what is inside."""

    width: float
    height: float
    body: str


def tag(artists: Artist | Iterable[Artist], method: str) -> None:
    """Mark what stands for a method: pages give it `data-method`, and its name to whoever points at it."""
    for artist in [artists] if isinstance(artists, Artist) else artists:
        artist.set_gid(METHOD + method)


def shape(marker: str) -> str:
    """A marker of matplotlib as the path of an SVG: one unit wide, around 0."""
    if marker == "o":
        return "M.5 0A.5.5 0 1 1-.5 0A.5.5 0 1 1 .5 0z"
    style = MarkerStyle(marker)
    corners = np.asarray(style.get_path().transformed(style.get_transform()).vertices)[:-1]
    return "M" + "L".join(f"{x:.3g} {-y:.3g}" for x, y in corners) + "z"


def svg(figure: Figure) -> bytes:
    """The figure as SVG by itself, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(rb"\s*\n\s*", b"\n", buffer.getvalue())
    return re.sub(rb'(?<= d=")[^"]+', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), short)


def drawn(whole: bytes, name: str) -> Drawn:
    """The figure for a page, from its SVG. `name`: of the figure, unique in the page, and so are the ids that begin with it."""
    root = ElementTree.fromstring(whole)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for group in list(root.iter()):
        _join(group)
    page = _Page(_ids(root, name))
    return Drawn(width, height, "".join(map(page.markup, root)))


def _ids(root: ElementTree.Element, name: str) -> dict[str, str]:
    """The page's id for everything that something refers to. Markers of one shape, whatever their colour, are one thing."""
    texts = (value for element in root.iter() for value in element.attrib.values())
    clips = [match for text in texts for match in re.findall(r"url\(#(.+?)\)", text)]
    shapes = {element.attrib["id"]: element.attrib["d"] for element in root.iterfind(".//{*}defs/{*}path[@id]")}
    seen = {key: f"{name}-{number}" for number, key in enumerate(dict.fromkeys([*clips, *shapes.values()]))}
    return {clip: seen[clip] for clip in clips} | {id: seen[shape] for id, shape in shapes.items()}


def _join(parent: ElementTree.Element) -> None:
    """Make one group of neighbours that are of the same method."""
    last = None
    for child in list(parent):
        name = child.attrib.get("id", "")
        if last is not None and name.startswith(METHOD) and name == last.attrib["id"]:
            last.extend(child)
            parent.remove(child)
        else:
            last = child if name.startswith(METHOD) else None


@dataclass
class _Page:
    """What becomes of a figure's elements in a page. `ids`: the page's by the figure's own; each is written once."""

    ids: dict[str, str]
    written: set[str] = field(default_factory=set)

    def markup(self, element: ElementTree.Element) -> str:
        """An element and what is inside; without what is empty, the ground, and groups that say nothing."""
        kind, own_id = element.tag.partition("}")[2], element.attrib.get("id", "")
        if kind in ("metadata", "style") or own_id == GROUND or self.ids.get(own_id) in self.written:
            return ""
        self.written |= {self.ids[own_id]} if own_id in self.ids else set()
        attributes = dict(self._attributes(element))
        inside = escape(element.text or "") if kind == "text" else ""
        inside += "".join(map(self.markup, element))
        if own_id.startswith(METHOD):
            method = own_id.removeprefix(METHOD)
            attributes["data-method"] = method
            inside = f"<title>{escape(method)}</title>{inside}" if inside else ""
        if kind == "path" and "d" not in attributes:
            return ""
        if kind in ("g", "defs") and (not inside or (kind == "g" and not attributes)):
            return inside
        written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        return f"<{kind}{written}>{inside}</{kind}>" if inside else f"<{kind}{written}/>"

    def _attributes(self, element: ElementTree.Element) -> Iterator[tuple[str, str]]:
        """The style as attributes, colours as the page's variables, references to the ids of the page."""
        style = (entry.partition(": ") for entry in element.attrib.get("style", "").split("; ") if entry)
        values = {**element.attrib, **{name: value for name, _, value in style}}
        if element.attrib.get("id") in self.ids:
            yield "id", self.ids[element.attrib["id"]]
            if "d" in values:  # a marker: where it is used, its colours are said
                values = {"d": values["d"]}
        if "transform" in values and not re.fullmatch(r"rotate\(-?0 .*\)", values["transform"]):
            yield "transform", _short(values["transform"])
        for name, value in values.items():
            if name == XLINK:
                yield "href", f"#{self.ids[value[1:]]}" if value.startswith("#") else value
            elif name == "d":
                yield "d", _path(value)
            elif name in PLACES:
                yield name, _short(value)
            elif name not in DROPPED and value not in DEFAULTS.get(name, ()):
                yield name, self._value(value.removesuffix("px"))

    def _value(self, value: str) -> str:
        if value.startswith("url(#"):
            return f"url(#{self.ids[value[5:-1]]})"
        return VARIABLE_OF.get(value) or _short(value, places=2)


def _path(path: str) -> str:
    """In tenths of a point; straight lines as steps from point to point, which are short numbers."""
    if set(re.findall(r"[A-Za-z]", path)) - {"M", "L", "z"}:
        return re.sub(r"\s*([A-Za-z])\s*", r"\1", _short(" ".join(path.split())))
    written, at = "", (0, 0)
    for command, x, y in re.findall(r"([ML]) (\S+) (\S+)|(?:z)", path):
        if not command:
            written += "z"
            continue
        point = round(10 * float(x)), round(10 * float(y))
        step = (point[0] - at[0], point[1] - at[1])
        if command == "M":
            written += f"M{_tenths(point)}l"
        elif step != (0, 0):
            written += _tenths(step) if written.endswith("l") or step[0] < 0 else f" {_tenths(step)}"
        at = point
    return written.removesuffix("l")


def _tenths(pair: tuple[int, int]) -> str:
    """Two numbers given in tenths, with as few characters as SVG needs."""
    first, second = (f"{number / 10:g}".replace("0.", ".", 1) if abs(number) < 10 else f"{number / 10:g}" for number in pair)
    return first + second if second.startswith("-") else f"{first} {second}"


def _short(text: str, places: int = 1) -> str:
    return NUMBER.sub(lambda number: f"{round(float(number[0]), places) + 0.0:g}", text)
