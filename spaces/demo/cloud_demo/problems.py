"""What went wrong, in a sentence for the person before the page."""

import functools
import html
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import gradio as gr

from .markup import failure


logger = logging.getLogger(__name__)


class Problem(Exception):
    """Something that the person is told in these words."""


def in_words(handler: Callable[..., AsyncIterator], said: gr.HTML | None = None) -> Callable[..., AsyncIterator]:
    """
    Make an event handler, an asynchronous generator, fail with sentences only. The log gets what is not foreseen.

    Args:
        handler (`Callable`):
            The event handler.
        said (`gr.HTML`, *optional*):
            One of its outputs, which says how far it has come. It shows the sentence, too, until the next event.
    """

    @functools.wraps(handler)
    async def speak(*args, **kwargs):
        try:
            async with aclosing(handler(*args, **kwargs)) as updates:
                async for update in updates:
                    yield update
        except Exception as error:
            sentence = sentence_of(error)
            if said is not None:
                yield {said: failure(sentence)}
            # Gradio shows the message as HTML
            raise gr.Error(html.escape(sentence, quote=False), print_exception=False) from None

    return speak


def sentence_of(error: Exception) -> str:
    """What to tell the person about an error."""
    if isinstance(error, Problem):
        return str(error)
    from .models import is_out_of_memory  # takes seconds to import, and is there once a model is

    if is_out_of_memory(error):
        logger.error("Out of memory", exc_info=error)
        return "The model ran out of memory. Try a shorter text, fewer critiques, or shorter ones."
    logger.error("An event failed", exc_info=error)
    return "Something went wrong here that nobody foresaw; the log of the demo has it. Your texts are still in place."
