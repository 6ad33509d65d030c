# Forks workers that read, change and sort a large list which they inherit,
# while the parent changes it; and starts other programs.
import hashlib, multiprocessing, os, subprocess, sys

n, rounds = int(sys.argv[1]), int(sys.argv[2])
data = [(i * 2654435761) % 2**32 for i in range(n)]
blob = bytearray(hashlib.sha256(b"seed").digest() * (n // 4))

def work(part):
    mine = sorted(data[part::4])
    for at in range(part * 4096, len(blob), 16 * 4096):
        blob[at] = part
    h = hashlib.sha256(repr(mine[:100] + mine[-100:]).encode())
    h.update(blob)
    return part, sum(mine), h.hexdigest()

def child(queue, part):
    queue.put(work(part))

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    with multiprocessing.Pool(2) as pool:
        for result in pool.imap(work, range(rounds), 1):
            print("pool", result[:2])
    queue = multiprocessing.Queue()
    started = [multiprocessing.Process(target=child, args=(queue, part)) for part in range(min(rounds, 3))]
    for p in started:
        p.start()
    data.reverse()
    blob[:] = blob[::-1]
    for result in sorted(queue.get() for _ in started):
        print("process", result[:2])
    for p in started:
        p.join()
        print("exit", p.exitcode)
    print("parent", data[:3], hashlib.sha256(blob).hexdigest())
    for i in range(2 * rounds):
        out = subprocess.run(["sh", "-c", f"cat; echo {i}"], input=bytes(blob[:70000]), capture_output=True)
        print("sub", out.returncode, hashlib.sha256(out.stdout).hexdigest())
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, hashlib.sha256(blob).digest())
        os._exit(7)
    print("fork", os.read(r, 32).hex(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
