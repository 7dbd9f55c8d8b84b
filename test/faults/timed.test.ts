// Scenarios that find out how long things take: nothing else runs beside them.
import { testAll } from './cut.ts';
import { SCENARIOS } from './scenarios.ts';

testAll(SCENARIOS.filter((scenario) => scenario.isTimed === true));
