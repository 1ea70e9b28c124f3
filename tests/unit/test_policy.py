"""Policies as values and as TOML."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmlet
from kvmlet.policy import Limits, Mount, Policy, policy_of


def test_values() -> None:
    policy = Policy.of(read=["/a", pathlib.Path("/b")], memory="1g", timeout="2m", env={"A": "b"})
    assert policy.mounts == (Mount("/a"), Mount("/b"))
    assert policy.limits == Limits(memory=1 << 30, timeout=120)
    assert policy.paths("read") == ["/a", "/b"]
    same = Policy.of(read=["/a", "/b", "/a"], memory=1 << 30, timeout=120.0, env={"A": "b"})
    assert policy == same
    assert len({policy, same}) == 1
    assert pickle.loads(pickle.dumps(policy)) == policy
    environment: Any = policy.env
    for change in (
        lambda: setattr(policy, "limits", Limits()),
        lambda: setattr(policy.limits, "memory", 5),
        lambda: environment.__setitem__("A", "c"),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()


def test_combinations() -> None:
    policy = Policy.of(read=["/a"], memory="1g", timeout=5, env={"A": "1", "B": "1"})
    both = policy | Policy.of(read=["/b", "/a"], timeout=1, env={"B": "2"})
    assert both == Policy.of(read=["/a", "/b"], memory="1g", timeout=1, env={"A": "1", "B": "2"})
    assert policy | Policy() == policy == Policy() | policy
    assert policy.replace(timeout=None, env={}) == Policy.of(read=["/a"], memory="1g")
    assert policy.replace(memory="2g").limits.memory == 2 << 30
    assert policy_of(policy, memory=None, timeout=3).limits == Limits(memory="1g", timeout=3)
    limits = Limits(memory="2g", max_files=10)
    both = policy_of(policy, limits=limits, timeout=3)
    assert both.limits == Limits(memory="2g", max_files=10, timeout=3)
    assert policy_of(policy, limits=Limits()) == policy
    assert policy_of(None, limits=limits, memory="3g").limits.memory == 3 << 30
    with pytest.raises(kvmlet.UsageError, match="limits: dict is none"):
        policy_of(None, limits={"memory": "1g"})
    assert policy_of(None) == Policy()
    wrong: Any = 5
    with pytest.raises(kvmlet.UsageError):
        policy_of(wrong)
    with pytest.raises(kvmlet.UsageError):
        policy.replace(nothing=5)
    with pytest.raises(TypeError):
        policy | wrong
    reaching = policy | Policy.of(net=["a.example:443"], publish=["8080:80"])
    both = reaching | Policy.of(net=["a.example:443", "public"])
    assert (both.net, both.publish) == (("a.example:443", "public"), ("8080:80",))
    assert policy_of(policy, net=["public"]).net == ("public",)
    sockets = Policy.of(unix=["/run/a"]) | Policy.of(unix=["b", "/run/a"])
    assert sockets.unix == ("/run/a", os.path.abspath("b"))
    assert both != reaching


@pytest.mark.parametrize(
    "words",
    [
        {"read": "/a"},
        {"read": ["a\0b"]},
        {"net": "public"},
        {"net": [5]},
        {"publish": "80:80"},
        {"unix": "/run/x.sock"},
        {"unix": [5]},
        {"unix": ["a\0b"]},
        {"memory": "1"},
        {"timeout": -1},
        {"max_procs": 0},
        {"env": {"A=": "b"}},
        {"env": {"A": 5}},
        {"env": {"": "b"}},
    ],
)
def test_wrong_values(words: dict[str, Any]) -> None:
    with pytest.raises(kvmlet.UsageError):
        Policy.of(**words)


TEXT = """\
read = ["/data", "models"]
net = ["api.example.com:443", "10.0.0.0/8"]
publish = ["8080:80"]
unix = ["/run/x.sock"]

[env]
A = "b"
"x.y" = "\\u0001\\"\\\\"

[limits]
timeout = "90s"
cpu-time = 1.5
memory = "1g"
max-procs = 64
"""


def test_toml(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(TEXT)
    policy = Policy.load(file)
    assert policy == Policy.of(
        read=["/data", tmp_path / "models"],
        net=["api.example.com:443", "10.0.0.0/8"],
        publish=["8080:80"],
        unix=["/run/x.sock"],
        env={"A": "b", "x.y": '\1"\\'},
        timeout=90,
        cpu_time=1.5,
        memory="1g",
        max_procs=64,
    )
    policy.save(file)
    assert Policy.load(file) == policy
    odd = Policy.of(env={"A": "\x7f\x1f\t"})
    assert Policy.from_toml(odd.to_toml()) == odd
    assert Policy().to_toml() == ""
    assert Policy.from_toml("") == Policy()


@given(
    st.builds(
        Policy.of,
        read=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
        env=st.dictionaries(
            st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1),
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        ),
        net=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
        timeout=st.none()
        | st.integers(1, 10**6)
        | st.floats(0.001, 1000).map(lambda s: round(s, 6)),
        memory=st.none() | st.integers(4 << 20, 1 << 40),
        max_procs=st.none() | st.integers(1, 1024),
    )
)
def test_toml_both_ways(policy: Policy) -> None:
    assert Policy.from_toml(policy.to_toml()) == policy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("read = [", "1:9: "),
        ("\nread = 5", "2:1: read is no list"),
        ("net = [5]", "1:1: net is no list"),
        ("a = 1", "1:1: a policy has no 'a'"),
        ("[limits]\n  memory = 'x'", "2:3: memory: 'x' is not a size"),
        ("[limits]\nspeed = 1", "2:1: no limit 'speed'"),
        ("[limits]\nmax_procs = 1", "2:1: no limit 'max_procs'"),
        ("limits = { timeout = -1 }", "1:1: timeout: -1 is not more than zero"),
        ("limits.timeout = -1", "1:1: "),
        ("[env]\nA = 1", "2:1: A is no string"),
        ("env = 5", "1:1: env is no table"),
        ("a = 1\na = 2", "2:"),
        ('read = ["a\\u0000"]', "1:"),
        ("x = " + "[" * 5000, "1:"),
    ],
)
def test_errors_have_their_place_in_one_line(tmp_path: pathlib.Path, text: str, place: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(kvmlet.UsageError) as raised:
        Policy.load(file)
    assert str(raised.value).startswith(f"{file}:{place}")
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    for path, content in (("missing", None), ("latin", b"\xff"), ("big", b"#" * (2 << 20))):
        if content is not None:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(kvmlet.UsageError, match=path):
            Policy.load(tmp_path / path)
