"""From a matplotlib figure to SVG that stands in a page: real text, the page's colours, methods by name, few bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from xml.etree import ElementTree

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from growbench.report.looks import VARIABLE_OF

METHOD = "method:"  # what begins the gid of an artist that stands for a method
XLINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = {"font-family", "stroke-dashoffset", "stroke-linejoin", "target", "id", "style", "transform", "version"}
PLACES = {"x", "y", "width", "height"}
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


def svg(figure: Figure) -> bytes:
    """The figure as SVG by itself, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(rb"\s*\n\s*", b"\n", buffer.getvalue())
    return re.sub(rb'(?<= d=")[^"]+', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), short)


def drawn(whole: bytes, name: str) -> Drawn:
    """The figure for a page, from its SVG. `name`: of the figure, unique in the page, and so are the ids that begin with it."""
    root = ElementTree.fromstring(whole)
    ids = {id: f"{name}-{number}" for number, id in enumerate(_referenced(root))}
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    ground = root.find(".//{*}g[@id='patch_1']")
    body = "".join(_markup(child, ids) for child in root if child is not ground)
    return Drawn(width, height, body)


def _referenced(root: ElementTree.Element) -> list[str]:
    """The ids that something refers to, in order."""
    texts = (value for element in root.iter() for value in element.attrib.values())
    found = (match for text in texts for match in re.findall(r"url\(#(.+?)\)", text))
    used = (link[1:] for element in root.iter() if (link := element.attrib.get(XLINK, "")).startswith("#"))
    return list(dict.fromkeys([*found, *used]))


def _markup(element: ElementTree.Element, ids: dict[str, str]) -> str:
    """An element and what is inside; groups that say nothing are left out, as is what is empty or paper on paper."""
    kind = element.tag.partition("}")[2]
    if kind in ("metadata", "style"):
        return ""
    attributes = dict(_attributes(element, ids))
    inside = escape(element.text or "") if kind == "text" else ""
    inside += "".join(_markup(child, ids) for child in element)
    gid = element.attrib.get("id", "")
    if gid.startswith(METHOD):
        method = gid.removeprefix(METHOD)
        attributes["data-method"] = method
        inside = f"<title>{escape(method)}</title>{inside}" if inside else ""
    if kind in ("g", "defs") and (not inside or (kind == "g" and not attributes)):
        return inside
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{kind}{written}>{inside}</{kind}>" if inside else f"<{kind}{written}/>"


def _attributes(element: ElementTree.Element, ids: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The style as attributes, colours as the page's variables, references to the ids of the page."""
    style = (entry.partition(": ") for entry in element.attrib.get("style", "").split("; ") if entry)
    values = {**element.attrib, **{name: value for name, _, value in style}}
    if element.attrib.get("id") in ids:
        yield "id", ids[element.attrib["id"]]
    turned = re.fullmatch(r"rotate\(-?0 .*\)", values.get("transform", ""))
    if "transform" in values and not turned:
        yield "transform", _short(values["transform"])
    for name, value in values.items():
        if name == XLINK:
            yield "href", f"#{ids[value[1:]]}" if value.startswith("#") else value
        elif name == "d":
            yield "d", _path(value)
        elif name in PLACES:
            yield name, _short(value)
        elif name not in DROPPED:
            yield name, _value(value, ids)


def _value(value: str, ids: dict[str, str]) -> str:
    if value.startswith("url(#"):
        return f"url(#{ids[value[5:-1]]})"
    return VARIABLE_OF.get(value) or _short(value, places=2)


def _path(path: str) -> str:
    """In tenths of a point, without blanks and letters that SVG can do without."""
    short = re.sub(r"\s*([A-Za-z])\s*", r"\1", _short(" ".join(path.split())))
    return re.sub(r"(?<=\d)L(?!.*[QC])", " ", short) if re.fullmatch(r"M[^A-Za-z]*(L[^A-Za-z]*)+z?", short) else short


def _short(text: str, places: int = 1) -> str:
    return NUMBER.sub(lambda number: f"{round(float(number[0]), places) + 0.0:g}", text)
