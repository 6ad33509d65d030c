// Builds maps, objects, strings and typed arrays, lets most of them become
// garbage, and prints what is left.
const crypto = require('crypto');
const n = Number(process.argv[2]);
let x = 12345;
const next = () => (x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff);
const kept = new Map();
for (let round = 0; round < 4; round++) {
  const list = [];
  for (let i = 0; i < n; i++) list.push({ key: next(), name: 'entry ' + i + ' of ' + round, more: [i, round] });
  list.sort((a, b) => a.key - b.key || a.more[0] - b.more[0]);
  for (let i = 0; i < n; i += 3) kept.set(list[i].name, list[i]);
  const h = crypto.createHash('sha256');
  for (const o of list) h.update(o.name);
  console.log('round', round, kept.size, h.digest('hex'));
}
const buffers = [];
for (let i = 0; i < 64; i++) buffers.push(new Uint32Array(n / 8).fill(i));
let sum = 0;
for (const [name, o] of kept) sum = (sum + o.key + o.more[0] + name.length) % 1e9;
for (const b of buffers) for (let i = 0; i < b.length; i += 512) sum = (sum + b[i]) % 1e9;
console.log('sum', sum, JSON.stringify([...kept.values()].slice(0, 100)).length);
setTimeout(() => console.log('timer'), 5);
