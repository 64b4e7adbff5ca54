"""What the workers of one node share: the object of `PoolStage.shared`, in a Ray actor of its own.

The actor is started again, with a new and empty object, where its process or its machine dies; the calls that were on
their way are then made a second time.
"""

from concurrent.futures import Future
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from pipeline.stage import PoolStage


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Keeper:
    """Holds the object and makes the calls, one at a time."""

    def __init__(self, stage: PoolStage) -> None:
        self._object = stage.shared()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._object, method)(*arguments)


class Kept:
    """The `Shared` that a worker is given: it travels with the call."""

    def __init__(self, stage: PoolStage) -> None:
        self._keeper: ActorHandle[Any] = Keeper.remote(stage)  # type: ignore[attr-defined]

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        return cast(Future[Any], self._keeper.call.remote(method, *arguments).future())

    def end(self) -> None:
        """Kill the actor. Calls that come later fail."""
        ray.kill(self._keeper)


def keep(stage: object) -> Kept | None:
    """A home for what the workers of a stage share; None where there is nothing to share."""
    if not isinstance(stage, PoolStage) or stage.shared() is None:
        return None
    return Kept(stage)
