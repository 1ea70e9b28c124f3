"""Prints a C file of about LINES lines, the same at every run: c_source.py LINES"""

import sys

lines = int(sys.argv[1])
out = [
    "typedef unsigned long u64;",
    "struct item { u64 key; double weight; struct item *next; char name[16]; };",
    "static u64 mix(u64 x) { x ^= x >> 31; x *= 0x9e3779b97f4a7c15ul; return x ^ (x >> 27); }",
]
number = 0
while len(out) < lines:
    k = number * 7 % 61 + 1
    out += [
        f"static u64 f{number}(struct item *p, u64 a, int n)",
        "{",
        f"    u64 sum = {number}ul, table[{k}];",
        f"    for (int i = 0; i < {k}; i++) table[i] = mix(a + i * {k});",
        "    for (; p; p = p->next) {",
        f"        if (p->key % {k} == {number % k}) sum += (u64)(p->weight * {k}.5);",
        f"        switch (n & 7) {{ case {number % 8}: sum ^= p->key; break;",
        f"        case {(number + 3) % 8}: sum -= p->name[{k % 16}]; break; default: sum++; }}",
        "    }",
        f"    while (n-- > 0) sum = mix(sum) + table[(unsigned)n % {k}];",
        f"    return sum{f' + f{number - 1}(p, sum, n & 3)' if number else ''};",
        "}",
    ]
    number += 1
out += ["int main(int argc, char **argv)", "{", '    struct item it = { argc, 2.5, 0, "x" };']
out += [f"    return (int)f{number - 1}(&it, (u64)argc, argv != 0) & 0x7f;", "}"]
print("\n".join(out))
