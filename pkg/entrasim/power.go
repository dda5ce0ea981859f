package entrasim

import (
	"encoding/binary"
	"math/big"
	"math/bits"
)

// words are a number of 256 bits, the least significant word first.
type words [4]uint64

func toWords(x *big.Int) words {
	var text [32]byte
	x.FillBytes(text[:])
	var w words
	for i := range w {
		w[i] = binary.BigEndian.Uint64(text[24-8*i:])
	}
	return w
}

func (w *words) bytes() []byte {
	out := make([]byte, 0, 32)
	for i := range w {
		out = binary.BigEndian.AppendUint64(out, w[3-i])
	}
	return out
}

// modulus is an odd number of 256 bits, by which powers are taken in Montgomery's
// form: without a division, and for a size that is known when this is compiled
// in a third of the time that math/big takes for a number of any size.
type modulus struct {
	m      words
	k      uint64 // -1/m modulo 2^64
	square words  // 2^512 modulo m
}

func newModulus(m *big.Int) *modulus {
	n := &modulus{m: toWords(m)}
	n.square = toWords(new(big.Int).Mod(new(big.Int).Lsh(big.NewInt(1), 512), m))
	inverse := n.m[0] // right in three bits, and twice as many after each round
	for range 5 {
		inverse *= 2 - n.m[0]*inverse
	}
	n.k = -inverse
	return n
}

// mul sets z to x·y/2^256 modulo m; z may be x or y.
func (n *modulus) mul(z, x, y *words) {
	var t0, t1, t2, t3, t4 uint64
	for _, a := range x {
		h0, l0 := bits.Mul64(a, y[0])
		h1, l1 := bits.Mul64(a, y[1])
		h2, l2 := bits.Mul64(a, y[2])
		h3, l3 := bits.Mul64(a, y[3])
		var c, t5 uint64
		l1, c = bits.Add64(l1, h0, 0)
		l2, c = bits.Add64(l2, h1, c)
		l3, c = bits.Add64(l3, h2, c)
		h3 += c
		t0, c = bits.Add64(t0, l0, 0)
		t1, c = bits.Add64(t1, l1, c)
		t2, c = bits.Add64(t2, l2, c)
		t3, c = bits.Add64(t3, l3, c)
		t4, t5 = bits.Add64(t4, h3, c)

		// So much of m that the lowest word becomes zero, and is dropped.
		q := t0 * n.k
		h0, l0 = bits.Mul64(q, n.m[0])
		h1, l1 = bits.Mul64(q, n.m[1])
		h2, l2 = bits.Mul64(q, n.m[2])
		h3, l3 = bits.Mul64(q, n.m[3])
		l1, c = bits.Add64(l1, h0, 0)
		l2, c = bits.Add64(l2, h1, c)
		l3, c = bits.Add64(l3, h2, c)
		h3 += c
		_, c = bits.Add64(t0, l0, 0)
		t0, c = bits.Add64(t1, l1, c)
		t1, c = bits.Add64(t2, l2, c)
		t2, c = bits.Add64(t3, l3, c)
		t3, c = bits.Add64(t4, h3, c)
		t4 = t5 + c
	}
	r0, b := bits.Sub64(t0, n.m[0], 0)
	r1, b := bits.Sub64(t1, n.m[1], b)
	r2, b := bits.Sub64(t2, n.m[2], b)
	r3, b := bits.Sub64(t3, n.m[3], b)
	if t4 != 0 || b == 0 {
		t0, t1, t2, t3 = r0, r1, r2, r3
	}
	z[0], z[1], z[2], z[3] = t0, t1, t2, t3
}

// power sets z to x to the power of the exponent, modulo m; x is below m.
func (n *modulus) power(z, x *big.Int, exponent *words) {
	one := words{1}
	var table [16]words // the powers of x up to the fifteenth
	n.mul(&table[0], &n.square, &one)
	base := toWords(x)
	n.mul(&table[1], &n.square, &base)
	for i := 2; i < len(table); i++ {
		n.mul(&table[i], &table[i-1], &table[1])
	}
	out := table[0]
	for i := 63; i >= 0; i-- { // four bits at a time
		for range 4 {
			n.mul(&out, &out, &out)
		}
		n.mul(&out, &out, &table[exponent[i/16]>>(i%16*4)&15])
	}
	n.mul(&out, &out, &one)
	z.SetBytes(out.bytes())
}
