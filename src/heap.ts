// How V8 lays out what this program makes. Imported before everything else.
import v8 from 'node:v8';

// Where most of what was made at some place in the code outlived a collection, V8 makes all that is made there in the old
// generation from then on. Rows of a claim do, in a moment in which the database is slow, and ten milliseconds later they are
// garbage that keeps others alive until the next full collection (ADR 0027).
v8.setFlagsFromString('--no-allocation-site-pretenuring');
