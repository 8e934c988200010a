"""A reward server that runs elsewhere, as an engine: it streams, and closing the stream stops the server's work."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import httpx

from cloud_hf.scoring import Score
from cloud_hf.serving.client import CLoudClient, RewardServerError

from .problems import Problem


# Somebody waits before the page: better tell them soon
_MAX_RETRIES = 1
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 300.0
_EVENT = "data: "


class RemoteEngine:
    """
    `RewardEngine` over a reward server (`python -m cloud_hf.serving.server`).

    Args:
        url (`str`):
            The server's address.
        api_key (`str`, *optional*):
            Its key.

    Attributes:
        critique (`bool`, *optional*): Whether its model writes critiques. Not known until the server has answered.
        context_length (`int`, *optional*): Tokens of its longest sequence. Not known until then either.

    Raises:
        `ValueError`: If the address is none.
    """

    def __init__(self, url: str, api_key: str | None = None):
        self.name = url
        self.critique: bool | None = None
        self.context_length: int | None = None
        self._client = CLoudClient(url, api_key, timeout=_READ_SECONDS, max_retries=_MAX_RETRIES)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """The server checks what it is sent. It is asked here which kind of model it has, until it has said so."""
        if self.critique is None:
            self.ask_kind()

    def ask_kind(self):
        """Learn `critique`, if the server answers. Where it does not, the next request says what is wrong."""
        with suppress(RewardServerError):
            served = self._client.served_model()
            self.critique, self.context_length = served.critique, served.context_length

    async def score(self, prompt, response: str, **options) -> Score:
        """See `RewardEngine`."""
        try:
            [score] = await self._client.ascore([prompt], [response], **options)
        except ValueError as error:  # the server's words about what it was sent
            raise Problem(f"The reward server refused this. {self._reason(error)}") from error
        except RewardServerError as error:
            raise Problem(f"The reward server cannot be reached or failed: {self._reason(error)}") from error
        return score

    async def stream(self, prompt, response: str, **options) -> AsyncIterator[str | Score]:
        """See `RewardEngine`."""
        asked = {key: value for key, value in options.items() if value is not None}
        body = {"inputs": [{"prompt": prompt, "response": response}], "stream": True, "return_critique_ids": True}
        try:
            async with self._events({**body, **asked}) as events, aclosing(events):
                async for event in events:
                    if "error" in event:
                        raise Problem(f"The reward server refused this. {event['error']}")
                    yield event["critique"] if "critique" in event else _read_score(event["result"])
        except httpx.TransportError as error:
            raise Problem("The reward server cannot be reached or broke off. Try again later.") from error

    async def close(self) -> None:
        """Connections are closed with each call."""

    def _reason(self, error: Exception) -> str:
        """`Row 0: http://…/v1/rewards: status 422: Row 0: the sentence` -> `the sentence`."""
        return re.sub(r"^status 4\d\d: (Row 0: )?", "", str(error).partition(f"{self._client.url}: ")[2])

    @asynccontextmanager
    async def _events(self, body: dict):
        timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        async with (
            httpx.AsyncClient(timeout=timeout, headers=self._headers, verify=self.name.startswith("https://")) as http,
            http.stream("POST", self._client.url, json=body) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise Problem(f"The reward server refused this. {_error_in(response)}")
            yield _read_events(response)


async def _read_events(response: httpx.Response) -> AsyncIterator[dict]:
    async with aclosing(response.aiter_lines()) as lines:
        async for line in lines:
            if line.startswith(_EVENT) and line != f"{_EVENT}[DONE]":
                yield json.loads(line.removeprefix(_EVENT))


def _read_score(result: dict) -> Score:
    return Score(
        reward=result["reward"],
        critique=result.get("critique") or "",
        rewards=tuple(result["rewards"]),
        critiques=tuple(result["critiques"]),
        reward_std=result["reward_std"],
        finish_reasons=tuple(result["finish_reasons"]),
        critique_ids=tuple(map(tuple, result["critique_ids"])),
    )


def _error_in(response: httpx.Response) -> str:
    try:
        return f"{response.json()['error']}"
    except (ValueError, KeyError, TypeError):
        return f"Status {response.status_code}."
