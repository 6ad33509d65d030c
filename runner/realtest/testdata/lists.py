# Builds and sorts lists and dicts of N entries; prints what they hold.
import hashlib, sys

def digest(strings):
    h = hashlib.sha256()
    for s in strings:
        h.update(s.encode())
    return h.hexdigest()

n = int(sys.argv[1])
x = 12345
numbers = []
for i in range(n):
    x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
    numbers.append(x)
by_name = {str(v): v for v in numbers}
ordered = sorted(numbers)
print("numbers", digest(map(str, ordered)))
print("names", digest(sorted(by_name)))
assert all(by_name[str(v)] == v for v in reversed(ordered))
for k in list(by_name)[::2]:
    del by_name[k]
by_name.update((i, [i]) for i in range(n))
print("mixed", len(by_name), sum(v[0] for v in by_name.values() if isinstance(v, list)))
text = " ".join(map(str, ordered))
print("joined", digest(reversed(text.split(" "))))
