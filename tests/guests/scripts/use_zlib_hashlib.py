import bz2
import hashlib
import hmac
import lzma
import zlib

data = b"".join(b"%d:%d\n" % (i, i * i % 9973) for i in range(40000))
packed = zlib.compress(data, 6)
assert zlib.decompress(packed) == data
print(len(data), len(packed), f"{zlib.crc32(data):08x} {zlib.adler32(data):08x}")
stream = zlib.decompressobj()
print(sum(len(stream.decompress(packed[i : i + 1000])) for i in range(0, len(packed), 1000)))
assert bz2.decompress(bz2.compress(data[:50000])) == data[:50000]
assert lzma.decompress(lzma.compress(data[:50000])) == data[:50000]
for name in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"):
    print(name, hashlib.new(name, data).hexdigest())
print(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1000).hex())
print(hmac.new(b"key", data, "sha256").hexdigest())
try:
    zlib.decompress(packed[:-10])
except zlib.error as error:
    print(error)
