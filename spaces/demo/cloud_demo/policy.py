"""Candidates from an OpenAI-compatible server."""

import asyncio
import os
from typing import Any

import httpx

from .arguments import DemoArguments
from .problems import Problem


_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
_TEMPERATURE = 1.0
_MAX_TOKENS = 1024
# It writes for so many visitors and programs together, and so many answers for each
VISITORS_AT_ONCE = 4
_ANSWERS_AT_ONCE = 8


async def generate(args: DemoArguments, turns: asyncio.Semaphore, prompt: Any, count: int) -> list[str]:
    """
    Ask the policy server for answers.

    Args:
        args ([`DemoArguments`]):
            Address, model and key.
        turns (`asyncio.Semaphore`):
            Lets in those for whom it may write together.
        prompt (`str` or `list[dict]`):
            What they answer.
        count (`int`):
            How many.

    Returns:
        `list[str]`: Those that are not empty.

    Raises:
        `Problem`: If the server cannot be reached, refuses or answers with something else.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    body = {"model": args.policy_model, "messages": messages, "temperature": _TEMPERATURE, "max_tokens": _MAX_TOKENS}
    key = os.environ.get(args.policy_key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{args.policy_url.rstrip('/')}/chat/completions"
    places = asyncio.Semaphore(_ANSWERS_AT_ONCE)
    secure = url.startswith("https://")
    async with turns, httpx.AsyncClient(timeout=_TIMEOUT, headers=headers, verify=secure) as http:

        async def ask() -> str:
            async with places:
                response = await http.post(url, json=body)
                response.raise_for_status()
                return response.json()["choices"][0]["message"]["content"] or ""

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask()) for _ in range(count)]
        except ExceptionGroup as errors:
            raise _problem_of(errors.exceptions[0]) from errors
    written = [text.strip() for task in tasks if (text := task.result()).strip()]
    if len(written) < 2:
        raise Problem(
            f"The server of {args.policy_model} wrote {len(written)} answers that are not empty; 2 are needed."
        )
    return written


def _problem_of(error: Exception) -> Exception:
    if isinstance(error, httpx.HTTPStatusError):
        return Problem(f"The server that writes candidates refused: status {error.response.status_code}.")
    if isinstance(error, httpx.TransportError):
        return Problem("The server that writes candidates cannot be reached or broke off.")
    if isinstance(error, ValueError | KeyError | TypeError | IndexError | AttributeError):
        return Problem("The server that writes candidates answered with something that is no chat completion.")
    return error
