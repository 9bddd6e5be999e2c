"""The queue of keys against a list."""

from collections import deque

import pytest
import torch

from fastsimsiam.methods.queue import KeyQueue


def numbered(first: int, count: int) -> torch.Tensor:
    """Keys that hold their numbers."""
    return torch.arange(first, first + count).float()[:, None].expand(count, 3)


def newest_last(queue: KeyQueue) -> list[float]:
    """The first element of each key, oldest first."""
    return torch.roll(queue.keys[:, 0], -int(queue.pointer)).tolist()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 8, 19])
def test_the_newest_keys_are_kept_in_order(batch: int) -> None:
    """Batches that divide the size, do not, equal it, and are larger than it."""
    queue, expected = KeyQueue(7, 3), deque[float](maxlen=7)
    for number in range(6):
        keys = numbered(batch * number, batch)
        queue.enqueue(keys)
        expected.extend(keys[:, 0].tolist())
        assert newest_last(queue)[-len(expected) :] == list(expected)
        assert queue.pointer == (number + 1) * batch % 7
    assert queue.keys.shape == (7, 3)


def test_batches_of_changing_size() -> None:
    queue, expected = KeyQueue(5, 3), deque[float](maxlen=5)
    for number, count in enumerate((2, 4, 9, 1, 5)):
        keys = numbered(100 * number, count)
        queue.enqueue(keys)
        expected.extend(keys[:, 0].tolist())
    assert newest_last(queue) == list(expected)


def test_it_starts_with_random_unit_vectors_of_the_seed() -> None:
    torch.manual_seed(3)
    first = KeyQueue(50, 8)
    torch.manual_seed(3)
    assert torch.equal(first.keys, KeyQueue(50, 8).keys)
    torch.testing.assert_close(first.keys.norm(dim=1), torch.ones(50))
    assert first.keys.mean(0).norm() < 0.3


def test_its_state_is_all_that_it_needs() -> None:
    queue = KeyQueue(7, 3)
    queue.enqueue(numbered(0, 5))
    resumed = KeyQueue(7, 3)
    resumed.load_state_dict({name: value.clone() for name, value in queue.state_dict().items()})
    for one in (queue, resumed):
        one.enqueue(numbered(10, 4))
    assert torch.equal(queue.keys, resumed.keys)
    assert torch.equal(queue.pointer, resumed.pointer)
    assert set(queue.state_dict()) == {"keys", "pointer"}


def test_keys_are_stored_in_place_in_float32_and_without_gradient() -> None:
    queue = KeyQueue(7, 3)
    place = queue.keys.data_ptr()
    queue.enqueue(torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True))
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad
    assert queue.keys.data_ptr() == place
