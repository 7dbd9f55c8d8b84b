// A first-in, first-out list.

const LEAST = 4;
/** Places of an empty list: what a burst took is given back. */
const KEPT = 64;

/**
 * First in, first out, O(1) at both ends. The first lies in the list itself, as most have no second; what is behind it in a ring
 * that doubles when it is full.
 */
export class Fifo<T> {
  #first: T | undefined;
  #size = 0;
  /** Of a length that is a power of two, or 0. */
  #rest: (T | undefined)[] = NONE;
  #head = 0;

  get size(): number {
    return this.#size;
  }

  first(): T | undefined {
    return this.#first;
  }

  push(item: T): void {
    if (this.#size === 0) {
      this.#first = item;
    } else {
      this.#makeRoom();
      this.#rest[(this.#head + this.#size - 1) & (this.#rest.length - 1)] = item;
    }
    this.#size++;
  }

  /** Puts an item before all others. */
  unshift(item: T): void {
    if (this.#size > 0) {
      this.#makeRoom();
      this.#head = (this.#head - 1) & (this.#rest.length - 1);
      this.#rest[this.#head] = this.#first;
    }
    this.#first = item;
    this.#size++;
  }

  shift(): T | undefined {
    const item = this.#first;
    if (this.#size <= 1) {
      this.#first = undefined;
      this.#size = 0;
      if (this.#rest.length > KEPT) this.clear();
      return item;
    }
    this.#first = this.#rest[this.#head];
    this.#rest[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#rest.length - 1);
    this.#size--;
    return item;
  }

  clear(): void {
    this.#first = undefined;
    this.#size = 0;
    this.#rest = NONE;
    this.#head = 0;
  }

  /** For one more behind the first. */
  #makeRoom(): void {
    const { length } = this.#rest;
    if (this.#size - 1 < length) return;
    const rest = new Array<T | undefined>(Math.max(LEAST, length * 2)).fill(undefined);
    for (let i = 0; i < length; i++) rest[i] = this.#rest[(this.#head + i) & (length - 1)];
    this.#rest = rest;
    this.#head = 0;
  }
}

/** Nothing is ever put into it: it has no room. */
const NONE: undefined[] = [];
