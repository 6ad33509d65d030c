# Pipes, background jobs, traps and substitutions around programs that need
# memory. $1 is how many lines there are.
set -eu -o pipefail
trap 'echo trapped; rm -f "$TMPDIR"/pipes.*' EXIT
seq "$1" | awk '{ a[NR] = $1 * 7919 % 1000003 } END { for (i = NR; i > 0; i--) print a[i] }' |
  sort -n -S 512M --parallel=2 | tee "$TMPDIR/pipes.all" | sha256sum
sort -S 512M -r "$TMPDIR/pipes.all" | md5sum > "$TMPDIR/pipes.back" &
sort -S 512M -u "$TMPDIR/pipes.all" | wc -l > "$TMPDIR/pipes.uniq" &
wait
cat "$TMPDIR"/pipes.back "$TMPDIR"/pipes.uniq
words=$(awk '{ c[$1 % 1000]++ } END { for (w in c) print w, c[w] }' "$TMPDIR/pipes.all" | sort -n | sed -n 1,50p)
echo "$words" | while read -r w c; do echo -n "$w:$c "; done
echo
(exit 3) || echo "status $?"
yes | head -n 100000 | wc -l || echo "pipe status ${PIPESTATUS[*]}"
all=$(<"$TMPDIR/pipes.all")
echo "${#all}"
kill -TERM $BASHPID
