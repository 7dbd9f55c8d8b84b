// How V8 lays out what this program makes. Imported before everything else.
import v8 from 'node:v8';

// Where most of what was made at some place in the code outlived a collection, V8 makes all that is made there in the old
// generation from then on. Rows of a claim do, in a moment in which the database is slow, and ten milliseconds later they are
// garbage that keeps others alive until the next full collection (ADR 0027).
v8.setFlagsFromString('--no-allocation-site-pretenuring');

// How much may become old garbage between two full collections, as a part of what lives, V8 reckons from how fast that comes: here
// slowly, so it lets the heap grow by a tenth, which is 5 MB, and collects all of it each five seconds. That takes 10 to 30 ms of this
// thread and both cores of a small host for longer. So: half of what lives (ADR 0037).
v8.setFlagsFromString('--heap-growing-percent=50');
