"""What every storage must do: inherit `StorageSuite` and say which one."""

import pickle
import threading
from pathlib import Path

import pytest

from pipeline.errors import DamagedStoreError
from pipeline.files import file_sha256
from pipeline.storage.contract import Content, Storage
from pipeline.storage.local import open_storage


class StorageSuite:
    """An empty storage, whatever it is made of."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        raise NotImplementedError

    def test_what_is_put_is_there(self, storage: Storage) -> None:
        storage.make()
        assert storage.absent() == ""
        assert storage.list() == {}
        storage.put("b", b"one")
        storage.put("a", b"three")
        assert storage.get("a") == b"three"
        assert storage.file("b").read_bytes() == b"one"
        found = storage.list()
        assert list(found) == ["a", "b"]
        assert {name: stored.size for name, stored in found.items()} == {"a": 5, "b": 3}
        assert storage.stat("a") == found["a"]
        storage.put("a", b"seven")
        assert storage.get("a") == b"seven"
        assert storage.list("a").keys() == {"a"}
        assert storage.stat("a") != found["a"], "a token changes with the content"

    def test_what_is_not_there(self, storage: Storage) -> None:
        storage.make()
        assert storage.stat("a") is None
        with pytest.raises(FileNotFoundError, match="a"):
            storage.get("a")
        with pytest.raises(FileNotFoundError, match="a"):
            storage.file("a")
        assert not storage.put_if("a", b"x", "token")
        storage.delete(["a"])
        storage.fetch(["a"])
        assert storage.list() == {}

    def test_what_is_deleted_is_gone(self, storage: Storage) -> None:
        storage.make()
        for name in ("a", "b", "c"):
            storage.put(name, b"x")
        storage.delete(["a", "c", "a"])
        assert list(storage.list()) == ["b"]
        with pytest.raises(FileNotFoundError, match="a"):
            storage.get("a")

    def test_folders_inside(self, storage: Storage) -> None:
        storage.make()
        inner = storage / "inner"
        inner.make()
        storage.put("a", b"x")
        inner.put("b", b"y")
        assert list(storage.list()) == ["a"]
        assert list(storage.list(deep=True)) == ["a", "inner/b"]
        assert list(storage.list("inner/", deep=True)) == ["inner/b"]
        assert list(storage.list("in", deep=True)) == ["inner/b"]
        assert storage.get("inner/b") == b"y"
        assert (str(inner), inner.name) == (f"{storage}/inner", "inner")

    def test_a_storage_is_known_by_its_address(self, storage: Storage) -> None:
        storage.make()
        storage.put("a", b"x")
        same = open_storage(str(storage))
        assert same == storage
        assert hash(same) == hash(storage)
        assert same.get("a") == b"x"
        assert open_storage(storage) is storage
        assert pickle.loads(pickle.dumps(storage)) == storage
        assert storage != storage / "a"

    def test_put_new_is_for_the_first_alone(self, storage: Storage) -> None:
        storage.make()
        assert storage.put_new("a", b"one")
        assert storage.put_new("a", b"one"), "its own bytes: an answer that was lost"
        assert not storage.put_new("a", b"two")
        assert storage.get("a") == b"one"

    def test_put_if_is_for_what_was_seen(self, storage: Storage) -> None:
        storage.make()
        storage.put("a", b"one")
        seen = storage.stat("a")
        assert seen is not None
        assert storage.put_if("a", b"two!", seen.token)
        assert not storage.put_if("a", b"three", seen.token)
        assert storage.get("a") == b"two!"
        assert storage.put_over("a", b"four", storage.stat("a"))
        assert not storage.put_over("a", b"five", None)
        assert storage.put_over("b", b"six", None)
        storage.delete(["a"])
        assert not storage.put_if("a", b"seven", seen.token)
        assert list(storage.list()) == ["b"]

    def test_of_many_that_create_one_wins(self, storage: Storage) -> None:
        storage.make()
        won: list[int] = []
        barrier = threading.Barrier(6)

        def create(number: int) -> None:
            barrier.wait()
            if storage.put_new("a", f"number {number}".encode()):
                won.append(number)

        together(create)
        assert len(won) == 1
        assert storage.get("a") == f"number {won[0]}".encode()

    def test_of_many_that_replace_one_wins(self, storage: Storage) -> None:
        storage.make()
        storage.put("a", b"x")
        seen = storage.stat("a")
        assert seen is not None
        won: list[int] = []
        barrier = threading.Barrier(6)

        def replace(number: int) -> None:
            barrier.wait()
            if storage.put_if("a", f"number {number}".encode(), seen.token):
                won.append(number)

        together(replace)
        assert len(won) == 1
        assert storage.get("a") == f"number {won[0]}".encode()

    def test_a_big_file_is_published_whole_or_not_at_all(self, storage: Storage) -> None:
        storage.make()
        data = bytes(range(256)) * 1000
        with storage.temporary("big") as temp:
            temp.write_bytes(data)
            content = Content(file_sha256(temp), len(data))
            assert storage.stat("big") is None
            storage.publish(temp, "big", content)
        with storage.temporary("other") as temp:
            temp.write_bytes(data)
        assert not temp.exists()
        assert list(storage.list()) == ["big"]
        storage.fetch({"big": content})
        assert storage.file("big", content).read_bytes() == data

    def test_a_small_folder_as_a_whole(self, storage: Storage) -> None:
        storage.make()
        folder = storage.pull(["*.json", "seed-*/*"])
        (folder / "seed-1").mkdir()
        (folder / "seed-1" / "weights").write_bytes(b"w")
        (folder / "run.json").write_bytes(b"{}")
        storage.push(["*.json", "seed-*/*"], last="run.json")
        assert list(storage.list(deep=True)) == ["run.json", "seed-1/weights"]
        again = open_storage(str(storage)).pull(["*.json", "seed-*/*"])
        assert (again / "seed-1" / "weights").read_bytes() == b"w"
        (folder / "seed-1" / "weights").unlink()
        storage.push(["*.json", "seed-*/*"], last="run.json")
        assert list(storage.list(deep=True)) == ["run.json"]

    def test_a_lock_is_held_by_one(self, storage: Storage) -> None:
        storage.make()
        with storage.lock(".00001.lock") as mine:
            assert mine
            with storage.lock(".00001.lock", block=False) as theirs:
                assert not theirs
        assert storage.list() == {}


class CheckedSuite(StorageSuite):
    """A storage elsewhere, whose files are fetched and compared."""

    def test_other_bytes_than_were_promised(self, storage: Storage) -> None:
        storage.put("a", b"xyz")
        with pytest.raises(DamagedStoreError, match=f"^{storage}: expected a with sha256 {'0' * 64}, found sha256 36"):
            storage.file("a", Content("0" * 64, 3))
        with pytest.raises(DamagedStoreError, match=f"^{storage}: expected b with 3 bytes, found no object"):
            storage.fetch({"b": Content("0" * 64, 3)})


def together(action: object) -> None:
    """Run an action with the numbers 0 to 5, each in a thread of its own."""
    threads = [threading.Thread(target=action, args=(number,)) for number in range(6)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
