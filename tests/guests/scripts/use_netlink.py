"""Asks for the loopback device's addresses and routes by rtnetlink, as ip(8) does."""

import socket
import struct

GET_ADDRESS, GET_ROUTE, DUMP = 22, 26, 0x301


def ask(kind, body, flags=1):
    """The content of each message that answers; a number for an error."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.settimeout(5)
        s.send(struct.pack("IHHII", 16 + len(body), kind, flags, 7, 0) + body)
        while True:
            data = s.recv(65536)
            while data:
                length, found, *_ = struct.unpack("IHHII", data[:16])
                if found == 3:
                    return
                yield struct.unpack("i", data[16:20])[0] if found == 2 else data[16:length]
                if not flags & 0x300:
                    return
                data = data[(length + 3) & ~3 :]


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack("HH", data[:4])
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


for family in (socket.AF_INET, socket.AF_INET6):
    for answer in ask(GET_ADDRESS, bytes([family]) + bytes(7), DUMP):
        if struct.unpack("I", answer[4:8])[0] == 1 and answer[3] == 254:
            told = attributes(answer[8:])
            print("address", answer[:8], told[1], told.get(2), told.get(3), told[6][:8])

KINDS = (1, 2, 4, 7, 15, 20, 25)


def routes(body, flags=1):
    for answer in ask(GET_ROUTE, body, flags):
        if isinstance(answer, int):
            yield answer
            continue
        told = attributes(answer[12:])
        is_loopback = told.get(4) == struct.pack("i", 1) and answer[7] in (2, 3)
        yield (answer[:12], {kind: told.get(kind) for kind in KINDS}) if is_loopback else "other"


def route(family, address, bits=None):
    bits = 8 * len(address) if bits is None else bits
    head = struct.pack("BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, 0)
    return head + struct.pack("HH", 4 + len(address), 1) + address + bytes(-len(address) % 4)


V4, V6 = socket.AF_INET, socket.AF_INET6
LOOPBACK = bytes(15) + b"\1"
for address in ([127, 0, 0, 1], [127, 1, 2, 3], [127, 255, 255, 255], [0, 0, 0, 0]):
    print("route", address, *routes(route(V4, bytes(address))))
print("route ::1", *routes(route(V6, LOOPBACK)))
print("cut short", *routes(route(V4, b"\x7f")), *routes(route(V6, b"\x7f")))
print("no address", *routes(bytes([V4]) + bytes(11)))
print("nothing", *routes(b"\2"))
for family in (0, 1, 99):
    print("family", family, *routes(bytes([family]) + bytes(11)))
for family in (V4, V6):
    for found in routes(bytes([family]) + bytes(11), DUMP):
        # Other devices have routes natively.
        if found != "other" and (family == V4 or found[1][1] == LOOPBACK):
            print("all", found)
