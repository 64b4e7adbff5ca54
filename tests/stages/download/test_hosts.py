"""What the workers of a run share: limits that hold whatever they ask for, fair shares, pauses, rates, robots.txt."""

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download import hosts
from stages.download.hosts import Ask, Hosts, Said
from stages.download.robots import REFUSED_S, Rules


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Simulated:
    """A worker that keeps to what it is told: it uses all it may, and some of its requests end."""

    def __init__(self, name: str, shared: Hosts) -> None:
        self.name, self.shared = name, shared
        self.held = self.used = self.waiting = 0

    def act(self, chance: random.Random) -> None:
        self.waiting = max(0, self.waiting + chance.randrange(-2, 6))
        self.used -= chance.randrange(self.used + 1)
        begun = min(self.waiting, max(self.held - self.used, 0))
        self.used += begun
        self.waiting -= begun

    def speak(self, host: str = "h") -> None:
        self.held = max(self.used, min(self.held, self.used + self.waiting))
        told = self.shared.exchange(self.name, Said({host: Ask(self.held, self.used, self.waiting)}))
        self.held = told.permits[host].held


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**32))
def test_the_workers_of_a_run_never_have_more_under_way_than_the_host_allows(
    per_host: int, workers: int, seed: int
) -> None:
    chance = random.Random(seed)
    clock = Clock()
    shared = Hosts(per_host, clock=clock)
    crowd = [Simulated(str(place), shared) for place in range(workers)]
    for _ in range(60):
        one = chance.choice(crowd)
        one.act(chance)
        if chance.random() < 0.7:
            one.speak()
        if chance.random() < 0.1:
            one.speak()  # a call that is repeated gives nothing twice
        clock.now += chance.random() * 0.02
        assert sum(worker.used for worker in crowd) <= per_host


def settled(per_host: int, waiting: list[int], rounds: int = 10) -> list[int]:
    """What workers with so much to do hold in the end."""
    clock = Clock()
    shared = Hosts(per_host, clock=clock)
    crowd = [Simulated(str(place), shared) for place in range(len(waiting))]
    for _ in range(rounds):
        for worker, wanted in zip(crowd, waiting, strict=True):
            worker.used = min(worker.held, wanted)  # requests end, and begin again where that is allowed
            worker.waiting = wanted - worker.used
            worker.speak()
            clock.now += 0.01
    return [worker.held for worker in crowd]


@pytest.mark.parametrize(
    ("per_host", "waiting", "held"),
    [
        (16, [64], [16]),
        (16, [3], [3]),
        (16, [64, 64], [8, 8]),
        (16, [64, 2, 64], [7, 2, 7]),
        (16, [64, 64, 64, 64], [4, 4, 4, 4]),
        (16, [1, 1, 1, 1], [1, 1, 1, 1]),
        (16, [0, 64], [0, 16]),
    ],
)
def test_a_host_is_shared_fairly_and_wholly(per_host: int, waiting: list[int], held: list[int]) -> None:
    assert settled(per_host, waiting) == held


def test_fewer_permits_than_workers_go_round() -> None:
    clock = Clock()
    shared = Hosts(1, clock=clock)
    crowd = [Simulated(str(place), shared) for place in range(4)]
    turns: Counter[str] = Counter()
    for _ in range(2000):
        for worker in crowd:
            worker.used, worker.waiting = 0, 5
            worker.speak()
            turns[worker.name] += worker.held
        clock.now += 0.01
    assert min(turns.values()) > 0.5 * max(turns.values())


def test_what_a_dead_worker_held_is_free_after_its_lease() -> None:
    clock = Clock()
    shared = Hosts(4, clock=clock)
    assert shared.exchange("dead", Said({"h": Ask(0, 0, 9)})).permits["h"].held == 4
    clock.now += hosts.LEASE_S * 0.9
    assert shared.exchange("alive", Said({"h": Ask(0, 0, 9)})).permits["h"].held == 0
    clock.now += hosts.LEASE_S * 0.2
    assert shared.exchange("alive", Said({"h": Ask(0, 0, 9)})).permits["h"].held == 4


def test_a_pause_is_told_to_whoever_asks_and_is_bounded() -> None:
    clock = Clock()
    shared = Hosts(4, clock=clock)
    shared.exchange("a", Said({}, {"h": 10.0, "forever": 86400.0}))
    told = shared.exchange("b", Said({"h": Ask(0, 0, 1), "other": Ask(0, 0, 1), "forever": Ask(0, 0, 1)}))
    assert {host: permit.pause_s for host, permit in told.permits.items()} == {
        "h": 10.0, "other": 0.0, "forever": hosts.MAX_PAUSE_S,
    }  # fmt: skip
    clock.now += 11
    assert shared.exchange("b", Said({"h": Ask(0, 0, 1)})).permits["h"].pause_s == 0


@given(st.floats(0.5, 200), st.integers(1, 6), st.integers(0, 2**32))
def test_starts_are_spaced_over_all_workers_and_no_more_are_reserved_than_wanted(
    rate: float, workers: int, seed: int
) -> None:
    chance = random.Random(seed)
    clock = Clock()
    shared = Hosts(1000, rate, clock)
    starts: list[float] = []
    unspent: dict[str, list[float]] = defaultdict(list)
    for _ in range(80):
        worker = str(chance.randrange(workers))
        unspent[worker] = [start for start in unspent[worker] if start > clock.now]
        waiting = chance.randrange(6)
        told = shared.exchange(worker, Said({"h": Ask(0, 0, waiting, len(unspent[worker]))}))
        given = [clock.now + start for start in told.permits["h"].starts or ()]
        assert len(given) + len(unspent[worker]) <= max(waiting, len(unspent[worker]))
        unspent[worker] += given
        starts += given
        clock.now += chance.random() * 0.05
    assert starts == sorted(starts)
    assert all(later - earlier >= 0.999 / rate for earlier, later in pairwise(starts))


def test_a_crawl_delay_spaces_the_starts_of_its_host() -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    assert shared.exchange("a", Said({"h": Ask(0, 0, 9)})).permits["h"].starts is None
    asks = [Ask(0, 0, 9, delay_s=5.0), Ask(0, 0, 9), Ask(0, 0, 9, delay_s=5.0)]  # one has not heard of it yet
    given = [shared.exchange(worker, Said({"h": ask})) for worker, ask in zip("abc", asks, strict=True)]
    assert [told.permits["h"].starts for told in given] == [(0.0,), (5.0,), (10.0,)]
    assert shared.exchange("a", Said({"other": Ask(0, 0, 9)})).permits["other"].starts is None


def test_a_crawl_delay_ends_with_those_who_know_of_it_and_its_host_is_forgotten() -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    for place in range(500):
        shared.exchange("a", Said({f"{place}.h": Ask(0, 0, 1, delay_s=5.0)}, found={f"http://{place}.h": Rules("")}))
        shared.exchange("a", Said({f"{place}.h": Ask(0, 0, 0, delay_s=5.0)}))
    assert shared.exchange("b", Said({"0.h": Ask(0, 0, 1)})).permits["0.h"].starts is None
    clock.now += 60
    shared.exchange("b", Said({}))
    assert len(shared) == 0


def test_one_worker_fetches_a_robots_txt_and_all_are_told() -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    rules = Rules("h", (("/x", False),))
    assert shared.exchange("a", Said({}, robots=("http://h",))).robots == {"http://h": None}
    assert shared.exchange("b", Said({}, robots=("http://h",))).robots == {}
    assert shared.exchange("a", Said({}, robots=("http://h",))).robots == {"http://h": None}  # the call came again
    shared.exchange("a", Said({}, found={"http://h": rules}))
    assert shared.exchange("b", Said({}, robots=("http://h",))).robots == {"http://h": rules}


def test_a_robots_txt_whose_fetcher_died_is_fetched_by_another() -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    shared.exchange("dead", Said({}, robots=("http://h",)))
    clock.now += hosts.ROBOTS_LEASE_S + 1
    assert shared.exchange("b", Said({}, robots=("http://h",))).robots == {"http://h": None}


def test_what_could_not_be_had_is_asked_for_again_after_a_while() -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    refused = Rules("h", refused=("robots_unreachable", "down"))
    shared.exchange("a", Said({}, found={"http://h": refused}))
    assert shared.exchange("b", Said({}, robots=("http://h",))).robots == {"http://h": refused}
    clock.now += REFUSED_S + 1
    assert shared.exchange("b", Said({}, robots=("http://h",))).robots == {"http://h": None}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    shared = Hosts(16, clock=clock)
    monkeypatch.setattr(hosts, "ROBOTS_BYTES", 10_000)
    for place in range(500):
        said = Said({f"h{place}": Ask(0, 0, 1)}, {f"h{place}": 1.0}, (), {f"http://h{place}": Rules("", nbytes=1000)})
        shared.exchange("a", said)
    clock.now += 60
    shared.exchange("b", Said({}))
    assert len(shared) <= 1
    assert shared.exchange("b", Said({}, robots=("http://h499", "http://h0"))).robots.keys() == {
        "http://h499", "http://h0",
    }  # fmt: skip
    assert shared.robots_bytes <= 10_000


def test_many_workers_are_told_to_speak_less_often() -> None:
    shared = Hosts(16, clock=Clock())
    ticks = [shared.exchange(str(place), Said({})).tick_s for place in range(200)]
    assert ticks[0] == hosts.TICK_S
    assert ticks[-1] == pytest.approx(200 / hosts.MESSAGES_A_SECOND)
