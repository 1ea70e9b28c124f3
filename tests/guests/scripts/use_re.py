import re

text = "".join(
    f"line {i}: key{i % 7}={i * 37 % 101}; mail user{i}@host{i % 3}.example\n" for i in range(500)
)
pairs = re.findall(r"(key\d)=(\d+)", text)
print(len(pairs), pairs[:3])
print(re.sub(r"user(\d+)@(host\d)", r"\2!\1", text)[:120])
print(sorted({m.group(1) for m in re.finditer(r"@(?P<host>host\d)\.example", text)}))
print(re.split(r"[;:]\s*", text.splitlines()[3]))
pattern = re.compile(
    r"""^(?P<a>\w+)\s+(?=\d)  # a word, then a number
                         (?P<b>\d+)""",
    re.VERBOSE | re.MULTILINE,
)
print(pattern.match(text).groupdict())
print(bool(re.fullmatch(r"(a|b)*c", "ab" * 2000 + "c")))
try:
    re.compile(r"(unclosed")
except re.error as error:
    print(error)
