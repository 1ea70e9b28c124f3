"""A server of names (RFC 1035) at 127.0.0.1 that changes its mind: answers by name, and by how often it was asked."""

import socket
import struct

FAR, PRIVATE, OWN = "93.184.216.34", "10.9.9.9", "127.0.0.1"
# For each name a list of answers, the last of which is given for good: an address, or "=NAME" for a CNAME.
ANSWERS = {
    "alias.example": [["=inner.example"]],
    "inner.example": [[PRIVATE]],
    "chain.example": [["=chain2.example"]],
    "chain2.example": [["=chain3.example"]],
    "chain3.example": [["=far.example"]],
    "far.example": [[FAR]],
    "mixed.example": [[PRIVATE, FAR, OWN, "169.254.169.254"]],
    "flips.example": [[FAR], [PRIVATE]],
    "turns.example": [[FAR], [OWN]],
    "mapped.example": [["::ffff:10.9.9.9"]],
    "nat64.example": [["64:ff9b::a09:909"]],
    "xn--bcher-kva.example": [[FAR]],
}
asked = {}


def name_at(data, at):
    labels = []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
        at += 1 + data[at]
    return ".".join(labels), at + 1


def written(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def records(name, kind):
    """The records of a name, with those that its CNAME leads to, all with no time to live."""
    answers = ANSWERS.get(name)
    if answers is None:
        return None
    # Both families are asked for at a time.
    turn = asked.get((name, kind), 0)
    asked[name, kind] = turn + 1
    found = b""
    count = 0
    for one in answers[min(turn, len(answers) - 1)]:
        if one.startswith("="):
            data = written(one[1:])
            found += written(name) + struct.pack(">HHIH", 5, 1, 0, len(data)) + data
            more, rest = records(one[1:], kind) or (0, b"")
            count += 1 + more
            found += rest
            continue
        family, of = (socket.AF_INET6, 28) if ":" in one else (socket.AF_INET, 1)
        if of == kind:
            data = socket.inet_pton(family, one)
            found += written(name) + struct.pack(">HHIH", of, 1, 0, len(data)) + data
            count += 1
    return count, found


def answer(question):
    name, end = name_at(question, 12)
    kind = struct.unpack_from(">H", question, end)[0]
    found = records(name, kind)
    count, data = found or (0, b"")
    code = 0 if found is not None else 3
    head = question[:2] + struct.pack(">HHHHH", 0x8580 | code, 1, count, 0, 0)
    return head + question[12 : end + 4] + data


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.1", 53))
    print("up", flush=True)
    while True:
        question, peer = server.recvfrom(4096)
        server.sendto(answer(question), peer)
