"""A hub that is not there, or half there."""

from __future__ import annotations

import socket

from tests.soak.attempt import REFUSED, Attempt, attack


def no_names() -> None:
    """No host has an address, as without a name server."""

    def unknown(*arguments: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    socket.getaddrinfo = unknown  # type: ignore[assignment]


def ask_the_hub() -> None:
    """As if HF_HUB_OFFLINE had not been set; a hub that does not answer is asked once."""
    import huggingface_hub.constants
    from huggingface_hub.utils import _http

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    _http.close_session()


def half_online() -> None:
    ask_the_hub()
    no_names()


HUB = ("data.corpus=hub:absent/absent", "data.tokenizer=absent/absent", "source=absent/absent")


def requests(attempt: Attempt) -> list[list[object]]:
    """A run with a corpus, with a tokenizer and with a source of the hub."""
    run = ["run", attempt.experiment, "--methods", "bert2bert", "--results", attempt.results]
    return [[*run, "--set", each] for each in HUB]


@attack("a corpus, a tokenizer and a source of the hub, with HF_HUB_OFFLINE", REFUSED)
def hub_offline(attempt: Attempt) -> str:
    return attempt.each_refused(requests(attempt))


@attack("the same, where no name server answers", REFUSED)
def hub_without_names(attempt: Attempt) -> str:
    return attempt.each_refused(requests(attempt), before=half_online)


@attack("the same, behind a proxy that refuses all connections", REFUSED)
def hub_behind_a_proxy(attempt: Attempt) -> str:
    attempt.environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return attempt.each_refused(requests(attempt), before=ask_the_hub)
