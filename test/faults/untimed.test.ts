// Scenarios that find out what happens, however long it takes: other tests may run beside them.
import { testAll } from './cut.ts';
import { SCENARIOS } from './scenarios.ts';

testAll(SCENARIOS.filter((scenario) => scenario.isTimed !== true));
