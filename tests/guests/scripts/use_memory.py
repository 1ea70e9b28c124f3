import array
import gc
import mmap

numbers = list(range(1_000_000))
print(sum(numbers))
table = {f"key{i}": i for i in range(200_000)}
print(len(table), table["key199999"])
del numbers, table
gc.collect()
block = bytearray(50_000_000)
block[::4096] = b"x" * len(block[::4096])
print(block.count(b"x"))
del block
print(sum(array.array("d", [0.5]) * 1_000_000))
with mmap.mmap(-1, 1 << 20) as memory:
    memory[1000:1005] = b"hello"
    print(memory.find(b"hello"), memory[1000:1005])
    memory.resize(1 << 21)
    print(len(memory), memory[1000:1005])


class Node:
    def __init__(self, next_node):
        self.next = next_node


for _ in range(5):
    ring = node = Node(None)
    for _ in range(20000):
        node = Node(node)
    ring.next = node
    del ring, node
print(gc.collect() > 0)
