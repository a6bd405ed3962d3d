"""inspect_ai with a wrapped client: an evaluation as a batch."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from answering import MODEL, check_paid
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.scorer import includes

import llmrouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from anthropic import APIRequest, AsyncCallNext

    from llmrouter import Router
    from support.world import World

pytestmark = [
    pytest.mark.timeout(60),
    # How inspect_ai 0.3.285 calls the newest tenacity.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
]


class WithoutRequestId(anthropic.Middleware):
    """Takes off the header that tells apart what inspect_ai sends: equal requests are equal again."""

    async def handle_async(self, request: APIRequest, call_next: AsyncCallNext) -> Any:
        kept = {name: value for name, value in request.headers.items() if name != "x-irid"}
        return await call_next(request.copy(headers=kept))


@asynccontextmanager
async def model_on(world: World, router: Router, **config: Any) -> AsyncIterator[Model]:
    model = get_model(
        f"anthropic/{MODEL}",
        base_url=world.server.base_url,
        api_key=world.server.api_key,
        config=GenerateConfig(max_tokens=200, **config),
        memoize=False,
    )
    given = model.api.client
    model.api.client = router.wrap(given.with_middleware(WithoutRequestId()))
    async with given:
        yield model


def test_a_model_goes_in_a_batch(start: Callable[..., World]) -> None:
    """Untagged it is live."""
    world = start(reply=lambda _: "Paris")
    router = world.router()

    async def main() -> list[str]:
        async with model_on(world, router) as model:
            with llmrouter.latency("daily"):
                batched = await model.generate("The capital of France?")
            return [batched.completion, (await model.generate("And of Texas?")).completion]

    assert asyncio.run(main()) == ["Paris"] * 2
    check_paid(world, batched=1, live=1)


def test_an_evaluation_goes_in_batches_and_runs_again_for_nothing(
    start: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time nothing is sent."""
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    world = start(reply=lambda _: "Paris")
    samples = [Sample(input=f"{n}. The capital of France?", target="Paris") for n in range(10)]

    async def main() -> Any:
        task = Task(dataset=samples, scorer=includes())
        with (
            world.router(classes={"daily": {"flush": 0.5}}) as router,
            llmrouter.latency("daily", run="eval"),
        ):
            async with model_on(world, router) as model:
                [log] = await eval_async(task, model=model, log_dir=str(tmp_path))
        return log

    first, second = asyncio.run(main()), asyncio.run(main())
    assert (first.status, second.status) == ("success", "success"), first.error
    assert first.results.scores[0].metrics["accuracy"].value == 1
    check_paid(world, batched=10)
    assert len(world.batches) < 10


def test_what_failed_is_paid_once(start: Callable[..., World]) -> None:
    """inspect_ai may ask again itself (`max_retries`); the SDK does not."""
    world = start(reply=lambda _: "Paris")
    world.fault(kind="item", error_type="api_error", message="broken", count=1)
    router = world.router(max_attempts=1)

    async def main() -> str:
        async with model_on(world, router, max_retries=1) as model:
            with llmrouter.latency("daily"):
                return (await model.generate("The capital of France?")).completion

    assert asyncio.run(main()) == "Paris"
    assert len(world.batch_items()) == 2
    world.check_books(1)
