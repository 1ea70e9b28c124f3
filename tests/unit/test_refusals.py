"""Refusals in words, by the tree that they are about."""

from __future__ import annotations

from kvmlet._refusals import flag_of, lines, remedy_of

VOLUMES = [("/srv/it s", "/data"), ("/srv/inner", "/data/in")]


def test_what_is_shown_elsewhere_is_named_by_its_path_on_the_host() -> None:
    flag = "-v '/srv/it s:/data:rw'"
    assert flag_of("open /data/x", "read-only", VOLUMES) == flag
    assert remedy_of("open /data/x", "read-only", VOLUMES).endswith(f"allow it with {flag}")
    assert flag_of("open /data/in/.envrc", "protected", VOLUMES) == "--write /srv/inner/.envrc"
    remedy = remedy_of("open /data/in/.envrc", "protected", VOLUMES)
    assert remedy.endswith("allow it with --write /srv/inner/.envrc")
    denials = [("open /data/x", "EROFS", "read-only", 1)]
    assert flag in lines(denials, 0, [], 5, VOLUMES)[0]


def test_other_trees_are_named_by_their_own() -> None:
    assert flag_of("open /database/x", "read-only", VOLUMES) == "--write /database"
    assert flag_of("open /data/x", "hidden", VOLUMES) == "--read /data/x"
    assert flag_of("open /srv/inner/.envrc", "protected", VOLUMES) == "--write /srv/inner/.envrc"
    assert flag_of("connect 192.0.2.1:80", "address", VOLUMES) == "--net 192.0.2.1:80"


def test_sockets_are_named_by_their_paths_on_the_host() -> None:
    kind = "host-socket"
    assert flag_of("connect /run/x.sock", kind) == "--unix /run/x.sock"
    assert flag_of("connect /data/x.sock", kind, VOLUMES) == "--unix '/srv/it s/x.sock'"
    assert remedy_of("connect /run/x.sock", kind) == "allow it with --unix /run/x.sock"
    assert flag_of("sendto /run/notify", kind) == "--unix /run/notify"
    for what in ("connect /dev/log", "connect /proc/self/root/x"):
        assert flag_of(what, kind) == ""
        assert "--unix allows those" in remedy_of(what, kind)
    kind = "replaceable-socket"
    assert flag_of("connect /work/x.sock", kind) == ""
    assert "in a tree of --write stay out of reach" in remedy_of("connect /work/x.sock", kind)
